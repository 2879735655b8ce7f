"""The table of faults that must be survived: for each row what it says, and the tests that bring it about.

The first tests of a row judge bytes at the far end of a pty; what stands behind them judges, at its own boundary, the
parts that no pty can show: the codec's every bit, a real driver's calls, the clock of a suspended machine. How quickly
each STOP comes is measured by the self-test, over many tries.
"""

from __future__ import annotations

DAEMON, REFUSALS, PORT, MVLA, CODEC = "test_daemon", "test_refusals", "test_serial_port", "test_mvla", "test_link_v1"
MACHINE = "os/test_machine"
"""Real devices of a virtual machine; `make test-os` runs it."""
CAMERA, MOTORS, POLICY, SYSTEM = "test_fault_camera", "test_fault_motors", "test_fault_policy", "test_fault_system"


def _in(module: str, *tests: str) -> list[str]:
    return [f"tests/{module}.py::test_{test}" for test in tests]


DIES = "a_policy_process_that_is_broken_is_replaced_and_one_that_keeps_breaking_ends_the_daemon"
TOO_LONG = "an_inference_that_takes_too_long_is_stopped_for_and_its_result_dropped"
BLOCKED = "a_loop_that_is_blocked_or_a_lock_that_is_held_is_stopped_for"
NO_COMMAND = "no_command_comes_from_a_picture_that_is_black_or_of_an_impossible_time"
HUB = "a_hub_that_resets_is_a_lost_port_in_whatever_order_things_come_back"
MUST_NOT_SAY = "what_a_controller_must_not_say_is_stopped_for_and_latched"

ROWS: dict[str, tuple[str, list[str]]] = {
    "F01": ("an inference takes too long", _in(POLICY, TOO_LONG)),
    "F02": (
        "an inference never returns",
        [
            *_in(POLICY, "an_inference_that_never_returns_is_a_lost_policy"),
            *_in(DAEMON, "a_frozen_policy_process_is_stopped_for_and_its_end_is_latched"),
        ],
    ),
    "F03": ("the policy's loop is blocked", _in(POLICY, BLOCKED)),
    "F04": ("a C call holds the policy's lock", _in(POLICY, BLOCKED)),
    "F05": (
        "the policy process is frozen",
        _in(
            DAEMON,
            "a_frozen_policy_process_is_stopped_for_and_its_end_is_latched",
            "sigstop_in_motion_is_answered_in_time",
        ),
    ),
    "F06": (
        "the policy process is killed, with memory to free",
        [
            *_in(POLICY, DIES, "every_way_to_end"),
        ],
    ),
    "F07": (
        "the gate is killed",
        [
            *_in(DAEMON, "when_the_gate_is_killed_the_policy_process_ends_and_the_controller_stops"),
            *_in("test_simulated_drive", "nothing_is_left_of_a_daemon_that_is_killed"),
        ],
    ),
    "F08": ("the gate is frozen", _in(DAEMON, "a_gate_that_slept_stops_before_anything_else")),
    "F09": ("every command from one old picture", _in(POLICY, "commands_from_one_old_picture_are_stale")),
    "F10": (
        "the camera is unplugged",
        [
            *_in(CAMERA, "a_camera_that_is_gone_is_stale_then_lost_and_is_opened_again"),
            *_in(DAEMON, "a_camera_that_goes_is_stale_then_lost_and_can_come_back"),
            *_in(CAMERA, "a_camera_that_comes_back_under_another_number_is_found_by_its_port"),
            *_in("test_stream_sources", "a_network_camera_is_read_lost_and_found_again"),
            *_in("test_capture", "a_camera_that_opens_and_fails_at_once_is_one_loss_with_growing_pauses"),
            *_in(
                MACHINE,
                "a_camera_that_is_unplugged_is_stale_then_lost_and_found_under_another_number",
                "a_streaming_error_is_a_lost_camera_that_is_opened_again",
            ),
        ],
    ),
    "F11": (
        "a read blocks",
        [
            *_in(CAMERA, "a_read_that_blocks_is_stale_then_lost_and_holds_up_nobody"),
            *_in("test_capture", "stopping_does_not_wait_for_a_driver_that_never_returns"),
            *_in(
                "test_stream_camera",
                "a_read_that_hangs_ends_in_its_time_and_the_next_opening_does_not_wait_for_it",
                "a_capture_thread_ends_while_the_library_hangs",
            ),
            *_in("test_stream_sources", "a_network_camera_that_never_answers_holds_up_nobody"),
            *_in(MACHINE, "a_read_that_blocks_for_ten_seconds_is_stale_then_lost_and_holds_up_nobody"),
        ],
    ),
    "F12": (
        "the driver repeats its last picture",
        [
            *_in(CAMERA, "a_picture_that_a_driver_repeats_for_ever_is_frozen"),
            *_in(DAEMON, "a_frozen_camera_is_noticed_by_its_pictures"),
            *_in(MACHINE, "a_driver_that_gives_the_same_picture_for_ever_is_frozen"),
        ],
    ),
    "F13": (
        "a black, torn or damaged picture",
        [
            *_in(CAMERA, NO_COMMAND, "a_damaged_picture_is_never_published_and_the_camera_stays_open"),
            *_in("test_camera_link", "a_picture_that_was_overwritten_is_unusable_and_the_next_one_is_not"),
            *_in("test_cameras", "a_jpeg_is_taken_whole_or_not_at_all"),
        ],
    ),
    "F14": (
        "an impossible capture time",
        [
            *_in(CAMERA, NO_COMMAND, "a_few_milliseconds_ahead_is_a_clocks_rounding"),
            *_in("test_capture", "repeated_and_backward_times_are_no_frames"),
            *_in("test_admission", "no_command_comes_from_a_frame_of_an_impossible_time"),
        ],
    ),
    "F15": (
        "NaN, infinity, a denormal",
        [
            *_in(
                POLICY,
                "a_number_that_is_none_is_never_on_the_wire_and_poisons_nothing",
                "a_number_that_is_none_from_the_first_cycle_on_is_never_armed",
                "a_denormal_number_is_zero",
            ),
            *_in(DAEMON, "a_nan_stops_the_robot_and_never_reaches_the_wire"),
            *_in("test_limits", "a_denormal_wish_is_zero"),
        ],
    ),
    "F16": (
        "out of limits",
        [
            *_in(
                POLICY,
                "up_to_ten_times_a_limit_is_clamped_and_comes_no_faster_than_allowed",
                "what_violates_a_limit_at_the_gate_is_stopped_for",
            ),
            *_in(DAEMON, "a_policy_that_asks_for_the_impossible_is_never_armed"),
        ],
    ),
    "F17": (
        "the engine fails",
        [
            *_in(POLICY, DIES),
            *_in("test_lockstep", "a_policy_that_goes_wrong_is_stopped_for_good"),
            *_in("test_engine", "an_output_that_was_not_written_is_an_error"),
        ],
    ),
    "F18": (
        "another model than the manifest says",
        [
            *_in(
                REFUSALS,
                "a_model_that_is_not_what_the_manifest_says",
                "another_model_than_the_manifest_says",
                "a_missing_model",
            ),
            *_in("test_engine", "what_does_not_fit_names_both_sides", "a_truncated_model_is_refused"),
        ],
    ),
    "F19": (
        "the serial line is unplugged and comes back",
        [
            *_in(MOTORS, "a_port_that_is_unplugged_is_asked_who_it_is_when_it_comes_back"),
            *_in(MACHINE, "an_adapter_that_is_unplugged_is_found_by_its_name_and_asked_who_it_is"),
        ],
    ),
    "F20": (
        "the port is another device, or a board that boots",
        [
            *_in(MOTORS, "to_something_else_only_hello_is_said", "a_board_that_boots_is_waited_for"),
            *_in(MOTORS, "a_board_that_boots_for_three_seconds_is_waited_for"),
            *_in(REFUSALS, "a_port_where_nobody_is_home"),
            *_in(MACHINE, "to_something_else_only_hello_is_said"),
        ],
    ),
    "F21": (
        "nobody reads the other end",
        [
            *_in(
                MOTORS,
                "nothing_is_put_behind_what_nobody_reads",
                "nothing_is_put_behind_what_a_driver_has_not_sent_yet",
            ),
            *_in(DAEMON, "a_line_that_nobody_reads_is_a_lost_controller"),
        ],
    ),
    "F22": (
        "partial writes",
        _in(
            PORT,
            "a_full_buffer_drops_frames_and_breaks_none",
            "every_frame_after_any_number_of_jams_is_whole_or_dropped",
        ),
    ),
    "F23": (
        "damage, loss, a second talker, a replay",
        [
            *_in(
                MOTORS,
                "over_a_bad_line_no_wrong_frame_is_obeyed_and_a_lost_stop_is_said_again",
                "a_second_talker_is_noticed",
                "what_a_controller_said_long_ago_is_taken_for_a_reset",
                "an_arming_and_a_drive_that_are_played_back_move_nothing",
                "one_byte_at_a_time_is_as_good_as_a_frame",
            ),
            *_in(DAEMON, "stops_repeat_until_confirmed_and_a_short_freeze_recovers"),
            *_in(
                CODEC,
                "no_flipped_bit_makes_a_packet",
                "no_truncation_makes_a_packet",
                "where_reads_split_does_not_matter",
            ),
            *_in(
                MVLA,
                "damage_never_makes_a_wrong_arming_or_a_stop_that_is_believed_and_not_so",
                "under_20_percent_loss_a_stop_always_arrives_and_is_always_confirmed",
                "what_a_line_may_do_without_harm_does_none",
                "a_replay_of_an_earlier_drive_changes_nothing",
            ),
        ],
    ),
    "F24": ("the controller resets in motion", _in(MOTORS, MUST_NOT_SAY)),
    "F25": (
        "the controller reports a fault",
        [
            *_in(MOTORS, MUST_NOT_SAY),
            *_in(MVLA, "any_fault_bit_while_armed_is_a_controller_fault"),
        ],
    ),
    "F26": (
        "the robot moves otherwise than told",
        [
            *_in(MOTORS, "motion_that_was_not_told_is_a_fault_half_a_second_later"),
            *_in(
                "test_motion_watch",
                "a_steady_speed_outside_the_tolerance_is_always_found_and_one_inside_never",
                "whoever_follows_at_the_slower_ramp_or_faster_is_never_accused",
            ),
        ],
    ),
    "F27": (
        "the watchdog is not set; a STATUS of an earlier session",
        _in(
            MOTORS, "a_watchdog_that_is_not_set_is_never_driven_with", "a_status_of_an_earlier_session_confirms_nothing"
        ),
    ),
    "F28": (
        "floods, garbage, cycles out of turn, lies about time",
        [
            *_in(
                POLICY,
                DIES,
                "a_command_of_before_is_dropped_and_counted",
                "a_start_that_was_long_ago_is_due_at_once",
                "a_start_that_is_told_late_is_missed_meanwhile",
                "a_start_in_the_future_begins_when_it_is_received",
                "every_way_to_say_what_is_never_said",
            ),
            *_in(
                "test_admission",
                "a_command_of_a_cycle_that_has_not_begun_is_a_sequence_error",
                "a_second_command_of_a_cycle_is_a_sequence_error",
                "more_than_a_thousand_messages_a_second_or_ten_a_period_are_a_flood",
            ),
            *_in("test_policy_link", "bytes_are_a_message_or_malformed"),
        ],
    ),
    "F29": (
        "two daemons, one port",
        [
            *_in(REFUSALS, "a_port_that_another_daemon_has"),
            *_in(MACHINE, "a_second_daemon_at_the_same_port_ends_and_writes_nothing"),
        ],
    ),
    "F30": (
        "suspend and resume",
        [
            *_in(SYSTEM, "after_a_suspension_nothing_is_written_before_the_stop"),
            *_in(SYSTEM, "a_gate_that_wakes_late_has_missed_a_deadline_and_no_more"),
            *_in(DAEMON, "a_gate_that_slept_stops_before_anything_else"),
        ],
    ),
    "F31": ("the wall clock jumps", _in(SYSTEM, "a_wall_clock_that_jumps_by_a_year_changes_nothing")),
    "F32": (
        "nobody reads the log",
        [
            *_in(SYSTEM, "nobody_who_reads_is_needed_and_what_nobody_reads_is_counted"),
            *_in(
                "test_reporter",
                "a_reader_that_is_gone_is_survived",
                "a_log_on_a_full_disk_ends_nothing",
            ),
            *_in(
                "test_journal",
                "a_journal_that_does_not_read_is_never_waited_for",
                "a_journal_that_stops_reading_goes_and_comes_back_costs_records_that_are_counted_and_told",
            ),
        ],
    ),
    "F33": (
        "the end is asked for",
        [
            *_in(DAEMON, "signals_end_it_with_a_stop"),
            *_in(SYSTEM, "an_error_during_the_shutdown_comes_after_the_stop_and_still_waits_for_standstill"),
        ],
    ),
    "F34": (
        "a crash loop of the policy",
        [*_in(POLICY, DIES), *_in("test_policy_link", "five_restarts_a_minute_and_then_no_more")],
    ),
    "F35": (
        "a wrong configuration",
        [
            *_in(REFUSALS, "an_unknown_key", "a_missing_configuration", "all_that_is_wrong_at_once"),
            *_in(REFUSALS, "a_recording_and_a_real_port"),
            *_in(
                "test_config",
                "keys_that_do_not_go_together",
                "all_errors_are_shown_at_once_in_the_order_of_the_file",
                "a_file_that_is_no_toml_is_refused_with_the_line",
                "values_of_each_key",
            ),
        ],
    ),
    "F36": (
        "fifty clients",
        [
            *_in(SYSTEM, "fifty_clients_at_once_are_answered_or_refused_and_the_drive_goes_on"),
            *_in(
                "test_control",
                "fifty_clients_are_each_answered_or_refused",
                "half_open_clients_do_not_keep_a_stop_out",
                "clients_that_never_read_do_not_block_anything",
            ),
        ],
    ),
    "F37": (
        "all cores busy",
        [
            *_in(POLICY, "a_policy_that_spins_on_every_core_harms_nobody_but_itself", TOO_LONG),
            *_in(
                "test_blame",
                "a_frozen_process_is_blamed_by_stage_and_as_frozen",
                "a_blocked_event_loop_is_not_taken_for_the_camera_or_the_network",
            ),
        ],
    ),
    "F38": (
        "arm asked for while moving, twice, without the right",
        [
            *_in(DAEMON, "an_operator_stops_arms_and_disarms"),
            *_in(MOTORS, "a_stop_while_arming_ends_the_arming"),
            *_in(
                "test_control",
                "only_this_user_can_reach_the_socket",
                "the_folders_group_may_and_others_are_told_how_to_get_the_right",
            ),
        ],
    ),
    "F39": ("the cause is over at once", _in(POLICY, "a_recovery_within_a_millisecond_takes_no_stop_back")),
    "F40": (
        "a stop meets a stop, an arming, a robot that does not stand",
        _in(
            MOTORS,
            "of_two_stops_the_stricter_wins_and_a_recovery_of_the_cause_ends_neither",
            "a_stop_while_arming_ends_the_arming",
            "a_standstill_that_is_never_reported_removes_the_drive",
        ),
    ),
    "F41": (
        "the policy process is hostile",
        [
            *_in(
                POLICY,
                "a_policy_that_spins_on_every_core_harms_nobody_but_itself",
                "a_policy_has_nothing_of_the_gates_to_write_to",
                DIES,
            ),
            *_in("test_policy_link", "nobody_can_resize_the_board"),
        ],
    ),
    "F42": (
        "the first command after an arming",
        [
            *_in(DAEMON, "it_begins_from_zero_and_stays_inside_the_limits"),
            *_in(POLICY, "up_to_ten_times_a_limit_is_clamped_and_comes_no_faster_than_allowed"),
        ],
    ),
    "F43": (
        "a slow camera, old buffers, a policy without room",
        [
            *_in(CAMERA, "a_camera_that_slows_down_in_the_dark_is_stopped_for_as_stale"),
            *_in(
                "test_capture",
                "pictures_from_before_a_reopening_are_never_used",
                "a_camera_that_slows_down_in_the_dark_is_told_of_once_and_again_when_it_is_on_time",
            ),
            *_in("test_stream_camera", "pictures_from_before_the_opening_are_thrown_away"),
            *_in(DAEMON, "a_policy_that_needs_too_long_is_refused_with_its_budget"),
        ],
    ),
    "F44": ("a hub resets", [*_in(MOTORS, HUB), *_in(MACHINE, HUB)]),
}
