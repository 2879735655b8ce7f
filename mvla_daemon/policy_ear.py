"""What the policy process says, and what the gate makes of it: a drive, a stop, or nothing.

An admitted command is written before anything else is done with it.
"""

from __future__ import annotations

from collections import deque

from mvla_daemon.core.admission import Kind, Mode, Offer, Verdict
from mvla_daemon.core.messages import Phase, Reason
from mvla_daemon.helm import Crew, Helm
from mvla_daemon.link import Failed, MalformedError, Ready, Started, Starved, unpack
from mvla_daemon.ops.telemetry import GateCycle, Telemetry


class PolicyEar:
    """Takes the messages one by one. Into `spans_ns` it puts how long each cycle took, from start to command."""

    def __init__(self, crew: Crew, helm: Helm, telemetry: Telemetry, spans_ns: deque[int]) -> None:
        self._admission = crew.admission
        self._keeper = crew.keeper
        self._announce = crew.announce
        self._helm = helm
        self._telemetry = telemetry
        self._spans_ns = spans_ns
        self._ever_ready = False

    def take(self, data: bytes, now_ns: int) -> None:
        """Act on one message, received just now; anything that is none is a broken process."""
        try:
            message = unpack(data)
        except MalformedError as error:
            self._helm.fault(Reason.SEQUENCE_ERROR, str(error), now_ns)
            return
        if self._admission.flooded(now_ns):
            self._helm.fault(Reason.SEQUENCE_ERROR, "the policy process floods its socket", now_ns)
        elif isinstance(message, Offer):
            self._on_offer(message, now_ns)
        elif isinstance(message, Started):
            self._on_verdict(self._admission.start(message.epoch, message.cycle, message.announced_ns, now_ns), now_ns)
        elif isinstance(message, Starved):
            self._on_verdict(self._admission.starved(message.epoch, message.captured_ns, now_ns), now_ns)
        elif isinstance(message, Ready):
            self._ever_ready = True
            self._keeper.on_ready()
            self._announce.policy_ready(message.about)
        else:
            self._on_failure(message, now_ns)

    def _on_offer(self, offer: Offer, now_ns: int) -> None:
        schedule = self._admission.schedule
        start_ns, deadline_ns = schedule.last_start_ns, schedule.deadline_ns
        verdict = self._admission.command(offer, now_ns)
        driving = self._helm.state.phase is Phase.ARMED and self._admission.mode is Mode.DRIVE
        written_ns = self._helm.drive(offer, now_ns) if verdict.kind is Kind.ADMIT and driving else 0
        self._on_verdict(verdict, now_ns)
        self._spans_ns.append(now_ns - start_ns)
        self._telemetry.cycle(
            GateCycle(offer.epoch, offer.cycle, start_ns, deadline_ns, now_ns, written_ns, offer.captured_ns)
        )

    def _on_verdict(self, verdict: Verdict, now_ns: int) -> None:
        if verdict.kind is Kind.FAULT and verdict.reason is not None:
            self._helm.fault(verdict.reason, verdict.why, now_ns)

    def _on_failure(self, failed: Failed, now_ns: int) -> None:
        """Before one was ever ready, the daemon cannot do its work; later, it is a stop and a new process.

        A new process that fails at once ends at once, which the keeper counts.
        """
        if self._keeper.ready:
            self._helm.fault(Reason.POLICY_ERROR, failed.sentence, now_ns)
        elif self._ever_ready:
            self._announce.policy_failed(failed.sentence)
        else:
            self._helm.end(failed.exit_code, failed.sentence, now_ns)
