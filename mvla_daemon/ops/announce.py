"""What the gate says of itself: one record for each change and each stop, and the answer to `status`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mvla_daemon.core.messages import MS, SECOND, Phase, Reason, Stage
from mvla_daemon.core.session import State
from mvla_daemon.link import Doing
from mvla_daemon.motors.link_v1 import Identity
from mvla_daemon.ops.telemetry import Telemetry

MAX_IDLE_REQUESTS = 10
"""A second's requests that change nothing and are told one by one."""
TAKEN_WITHIN_NS = 2 * MS
"""An event loop that is not held up takes a frame long before."""
_NEXT = {
    Phase.DISARMED: "disarmed",
    Phase.ARMING: "arming: rehearsing, nothing moves yet",
    Phase.ARMED: "armed: driving",
    Phase.STOPPING: "stopping",
    Phase.STOPPED: "stopped: arms again by itself",
    Phase.LATCHED: "latched: stays stopped until `mvla-daemon arm`",
}


class Announcer:
    """Turns what happened in the gate into records for people.

    `session` is the number of the motor link's session, which each record has from the first arming on.
    """

    def __init__(self, telemetry: Telemetry, session: Callable[[], int]) -> None:
        self._telemetry = telemetry
        self._session = session
        self._refusal = ""
        self._second_ends_ns = self._idle_requests = self._untold = 0

    def _tell(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        self._telemetry.event(name, message, level, **fields, session=self._session() or None)

    def identity(self, path: str, identity: Identity) -> None:
        """The controller behind the port has introduced itself."""
        text = (
            f"motor controller {identity.text!r} {identity.fw_major}.{identity.fw_minor} on {path}, "
            f"watchdog {identity.watchdog_min_ms} to {identity.watchdog_max_ms} ms"
        )
        self._tell("controller", text, controller=identity.text, port=path)

    def policy_ready(self, about: Mapping[str, Any]) -> None:
        """The policy process is loaded."""
        weights = "" if about.get("weights") == "trained" else ", RANDOM WEIGHTS"
        text = f"policy {about.get('name')!r} on {about.get('engine')}{weights}; camera {about.get('camera')}"
        fields = {key: about.get(key) for key in ("weights", "engine", "camera")}
        self._tell("policy_ready", text, policy=about.get("name"), **fields)

    def policy_failed(self, sentence: str) -> None:
        """A new policy process could not load; it is tried again, a few times."""
        self._tell("policy_failed", f"the new policy process: {sentence}", "error")

    def port(self, message: str, level: str) -> None:
        """The serial port went or came back."""
        self._tell("port", message, level)

    def operator(self, request: str, uid: int, pid: int, refusal: str, now_ns: int, *, did_something: bool) -> None:
        """Somebody asked for something; what changed nothing is told up to ten times a second, and counted beyond."""
        if now_ns >= self._second_ends_ns:
            self._second_ends_ns, self._idle_requests = now_ns + SECOND, 0
        self._idle_requests += not did_something
        if not did_something and self._idle_requests > MAX_IDLE_REQUESTS:
            self._untold += 1
            return
        fields: dict[str, Any] = {"request": request, "operator_uid": uid, "operator_pid": pid}
        text = f"{request} asked for by user {uid}, process {pid}"
        if refusal:
            text, fields["refusal"] = f"{text}: refused, {refusal}", refusal
        if self._untold:
            text, fields["untold"] = f"{text}; before it {self._untold} requests that were not told", self._untold
            self._untold = 0
        self._tell("operator", text, "warning" if refusal else "info", **fields)

    def refused(self, text: str) -> None:
        """Arming was refused; the same reason again is no news."""
        if text != self._refusal:
            self._refusal = text
            self._tell("refused", f"not armed: {text}", "warning", why=text)

    def change(self, before: State, after: State, why: str) -> None:
        """The phase or the reason has changed."""
        if after.phase is Phase.ARMED:
            self._refusal = ""
        reason = after.reason.label if after.reason is not None else ""
        told = reason and after.phase not in {Phase.ARMING, Phase.ARMED, Phase.DISARMED}
        escalated = told and before.reason is not after.reason and before.phase is not Phase.ARMED
        text = _NEXT[after.phase] + (f" ({reason})" if told else "") + (f": {why}" if escalated and why else "")
        level = "warning" if after.phase in {Phase.STOPPING, Phase.LATCHED} else "info"
        phase = after.phase.name.lower()
        self._tell("state", text, level, state=phase, reason=reason, before=before.phase.name.lower())

    def stop(
        self, reason: Reason, why: str, doing: Doing | None, *, due_ns: int | None, written_ns: int, driven_ns: int
    ) -> None:
        """A STOP was written, at `written_ns`; `driven_ns` is when the last VELOCITY was, 0 for never.

        One that was asked for is nobody's fault: its record has the stage, its sentence does not.
        """
        fields: dict[str, Any] = {"reason": reason.label, "written_ns": written_ns}
        asked_for = reason in {Reason.OPERATOR, Reason.SHUTDOWN}
        if doing is not None:
            spent_ms = max(0.0, (written_ns - doing.since_ns) / MS)
            fields |= {"stage": doing.stage.label, "cycle": doing.cycle, "duration_us": round(spent_ms * 1000)}
            blame = f"cycle {doing.cycle} was in {doing.stage.label} for {spent_ms:.1f} ms"
            if doing.stage is Stage.WAIT_FRAME and doing.since_ns < doing.frame_ns < written_ns - TAKEN_WITHIN_NS:
                waiting_ms = (written_ns - doing.frame_ns) / MS
                fields["frame_waiting_us"] = round(waiting_ms * 1000)
                blame += f", though a frame had been there for {waiting_ms:.1f} ms: its event loop was held up"
            if not asked_for:
                why = f"{why}; {blame}" if why else blame
        if due_ns is not None:
            fields["late_us"] = (written_ns - due_ns) // 1000
        if driven_ns:
            fields["since_velocity_us"] = (written_ns - driven_ns) // 1000
        level = "info" if asked_for else "error"
        self._tell("stop", f"STOP {reason.label}" + (f": {why}" if why else ""), level, **fields)
