//! The control: with the protection off the scenarios fail. And the fallback: without the page they pass.

use crate::kit;
use forksafe::testing::{self, Witness};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// What a run came to.
enum Came {
    Passed,
    Failed,
    /// It took longer than a test may, and no claim of it had failed.
    Hung,
}

struct Run {
    test: String,
    came: Came,
    /// What it printed.
    text: String,
}

/// Runs tests of this program with something set in their environment, some at a time: most of them wait for one another
/// more than they compute.
fn run(tests: &[&str], setting: &str) -> Vec<Run> {
    let queue = Mutex::new(tests.iter());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(test) = { queue.lock().unwrap().next() } {
                    let begun = Instant::now();
                    let output = Command::new(std::env::current_exe().unwrap())
                        .args([test, "--exact", "--test-threads=1", "--include-ignored"])
                        .env(setting, "1")
                        .stdin(Stdio::null())
                        .output()
                        .unwrap();
                    let text =
                        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
                    assert!(!text.contains("running 0 tests"), "there is no test {test}");
                    let came = match output.status.success() {
                        true => Came::Passed,
                        // Where a claim has failed, and the threads of others keep it from its end, it has failed.
                        false
                            if text
                                .split_once(" and was ended:")
                                .is_some_and(|(_, text)| !text.contains(" panicked at ")) =>
                        {
                            Came::Hung
                        }
                        false => Came::Failed,
                    };
                    let (how, took) = (if output.status.success() { "passed" } else { "failed" }, begun.elapsed());
                    println!("{setting} {test}: {how} after {took:.1?}");
                    results.lock().unwrap().push(Run { test: (*test).to_owned(), came, text });
                }
            });
        }
    });
    results.into_inner().unwrap()
}

/// Without the protection these wait for what somebody else has taken, and have no deadline of their own. They come first,
/// so that the others run meanwhile.
const HANG: &[&str] = &["postgres_driver::a_child_that_was_forked_during_a_connect_starts_over"];

/// Each row that the protection covers, against each server that it can be run against.
const PROTECTED: &[&str] = &[
    // 1
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::witness",
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::redis",
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::postgres",
    "idle::pid_1_and_its_child_pid_1_are_told_apart::witness",
    "idle::pid_1_and_its_child_pid_1_are_told_apart::redis",
    "idle::pid_1_and_its_child_pid_1_are_told_apart::postgres",
    "idle::a_reused_pid_is_not_taken_for_its_former_owner::witness",
    "idle::a_reused_pid_is_not_taken_for_its_former_owner::redis",
    "idle::a_reused_pid_is_not_taken_for_its_former_owner::postgres",
    // 2
    "idle::an_idle_child_keeps_no_connection_of_its_parent_open::witness",
    "idle::an_idle_child_keeps_no_connection_of_its_parent_open::redis",
    "idle::an_idle_child_keeps_no_connection_of_its_parent_open::postgres",
    // 3
    "lent::a_guard_in_a_child_harms_nobody::witness",
    "lent::a_guard_in_a_child_harms_nobody::redis",
    "lent::a_guard_in_a_child_harms_nobody::postgres",
    "lent::unwinding_code_finds_a_dead_socket_and_not_an_abort::witness",
    "lent::unwinding_code_finds_a_dead_socket_and_not_an_abort::redis",
    "lent::unwinding_code_finds_a_dead_socket_and_not_an_abort::postgres",
    "lent::what_was_borrowed_before_the_fork_finds_a_dead_socket",
    // 4
    "lent::what_other_threads_held_does_not_count_in_the_child::witness",
    "lent::what_other_threads_held_does_not_count_in_the_child::redis",
    "lent::what_other_threads_held_does_not_count_in_the_child::postgres",
    // 5
    "lent::a_child_of_an_exhausted_pool_is_served_and_so_are_the_parents_waiters::witness",
    "lent::a_child_of_an_exhausted_pool_is_served_and_so_are_the_parents_waiters::redis",
    "lent::a_child_of_an_exhausted_pool_is_served_and_so_are_the_parents_waiters::postgres",
    // 6
    "inflight::a_connect_that_overlaps_a_fork_is_done_again",
    "inflight::a_fork_during_validation_harms_nobody",
    "inflight::a_fork_during_a_return_harms_nobody",
    "inflight::a_fork_during_a_build_harms_nobody",
    // 7
    "storm::racing_threads_of_a_child_are_all_served_by_one_new_state::witness",
    "storm::racing_threads_of_a_child_are_all_served_by_one_new_state::redis",
    "storm::racing_threads_of_a_child_are_all_served_by_one_new_state::postgres",
    "storm::racing_threads_of_a_handlerless_child_take_stock_once",
    "storm::a_thread_that_is_told_the_generation_finds_everything_dead",
    // 8
    "idle::grandchildren_are_protected_whenever_they_are_made::witness",
    "idle::grandchildren_are_protected_whenever_they_are_made::redis",
    "idle::grandchildren_are_protected_whenever_they_are_made::postgres",
    "idle::ten_generations_deep_each_has_its_own::witness",
    "idle::ten_generations_deep_each_has_its_own::redis",
    "idle::ten_generations_deep_each_has_its_own::postgres",
    // 9
    "storm::a_storm_of_children_harms_neither_them_nor_their_parent::witness",
    "storm::a_storm_of_children_harms_neither_them_nor_their_parent::redis",
    "storm::a_storm_of_children_harms_neither_them_nor_their_parent::postgres",
    // 10
    "ends::however_a_child_ends_the_parents_sessions_go_on::witness",
    "ends::however_a_child_ends_the_parents_sessions_go_on::redis",
    "ends::however_a_child_ends_the_parents_sessions_go_on::postgres",
    // 11
    "idle::an_orphan_goes_on::witness",
    "idle::an_orphan_goes_on::redis",
    "idle::an_orphan_goes_on::postgres",
    // 12
    "idle::every_pool_is_protected::witness",
    "idle::every_pool_is_protected::redis",
    "idle::every_pool_is_protected::postgres",
    "idle::a_pool_made_only_in_the_child_works::witness",
    "idle::a_pool_made_only_in_the_child_works::redis",
    "idle::a_pool_made_only_in_the_child_works::postgres",
    // 15
    "storm::a_child_with_threads_that_shares_the_table_says_so_and_touches_nothing",
    // 16
    "lent::new_descriptors_of_the_child_never_meet_an_inherited_guard::witness",
    "lent::new_descriptors_of_the_child_never_meet_an_inherited_guard::redis",
    "lent::new_descriptors_of_the_child_never_meet_an_inherited_guard::postgres",
    "lent::a_guarded_client_is_refused_in_a_child_and_lives_on_here",
    // 17
    "redis_driver::a_subscription_survives_its_copy_in_a_child",
    "postgres_driver::an_open_transaction_survives_two_hundred_children_that_do_their_worst",
    "postgres_driver::rows_that_the_parent_is_reading_are_not_the_childs",
    "postgres_driver::a_borrowed_client_finds_a_dead_socket",
    "postgres_driver::notifications_go_on_reaching_the_parent",
    // 18
    "callbacks::a_child_that_was_forked_in_a_callback_starts_over",
    "postgres_driver::a_fork_inside_a_notice_callback_leaves_the_query_to_the_parent",
    "callbacks::an_exit_handler_that_closes_the_pool_in_a_child_says_nothing",
    "callbacks::a_child_that_was_forked_in_a_goodbye_of_a_closed_pool_closes_nothing",
    "registry::a_child_made_in_a_goodbye_has_no_copy_of_the_socket",
    "registry::a_child_that_comes_out_of_a_goodbye_does_not_end_it",
    // 19
    "postgres_driver::nothing_that_a_client_is_made_of_is_shared",
    // 22
    "registry::a_full_descriptor_table_does_not_keep_a_child_from_disowning",
    "registry::a_socket_that_no_dead_one_can_be_put_over_is_closed",
    "limits::a_full_descriptor_table_is_an_error_and_not_a_leak",
    "postgres_driver::a_full_table_does_not_keep_a_child_from_disowning",
    // 23
    "reconnect::a_hundred_children_open_what_their_pools_may_hold_and_no_more",
    // 1 and 3, on the wire
    "tap::no_byte_of_a_child_travels_on_its_parents_redis_connections",
    "tap::no_byte_of_a_child_travels_on_its_parents_postgres_connections",
    "witness::a_pool_over_a_unix_socket_is_as_safe_as_one_over_tcp",
    // 26
    "churn::no_child_of_two_thousand_holds_a_live_socket_that_it_did_not_make",
    "churn::no_child_of_a_redis_parent_holds_a_live_socket_either",
    "churn::no_child_of_a_postgres_parent_holds_a_live_socket_either",
    // 47
    "made_here::a_value_is_its_makers_alone",
    "made_here::a_value_is_dropped_by_its_maker_alone",
    "made_here::what_an_ancestor_made_is_refused",
    // 46
    "net::what_this_side_has_connected_is_dead_in_a_child_and_what_it_has_accepted_is_not",
    "net::who_has_connected_is_told_in_the_middle_of_everything",
    "net::a_child_without_handlers_is_swept_at_its_first_call_but_not_of_what_is_its_own",
    "net::a_client_that_nobody_has_registered_is_protected_by_the_net_alone",
    "net::descriptors_that_a_driver_hides_are_released",
    "net::a_manager_that_forks_inside_its_connect_gives_its_child_nothing",
    "net::a_parent_that_is_killed_in_the_middle_of_a_connect_leaves_no_copy_in_a_child",
    // 28
    "hooks::hooks_run_once_per_child_in_order_before_the_first_use_is_served",
    // 29
    "registry::dozens_of_generations_do_not_fill_the_descriptor_table",
    "postgres_driver::dozens_of_generations_do_not_fill_the_descriptor_table",
    // 30
    "denied::where_madvise_is_forbidden_every_way_is_protected_all_the_same::witness",
    "denied::where_madvise_is_forbidden_every_way_is_protected_all_the_same::redis",
    "denied::where_madvise_is_forbidden_every_way_is_protected_all_the_same::postgres",
    "denied::a_child_whose_descriptors_may_be_its_parents_is_refused_and_touches_nothing",
    "denied::without_proc_redis_works_in_parent_and_child",
];

#[test]
fn with_the_protection_off_every_protected_row_fails() {
    let runs = run(&[HANG, PROTECTED].concat(), "FORKSAFE_CONTROL");
    let wrong = runs.iter().filter_map(|Run { test, came, text }| match came {
        Came::Passed => Some(format!("{test} passed without the protection, so it shows nothing")),
        Came::Hung if !HANG.contains(&&**test) => {
            Some(format!("{test} took too long, which may have any reason:\n{text}"))
        }
        _ if !text.contains(OFF) => Some(format!("{test} failed with the protection on:\n{text}")),
        _ => None,
    });
    assert_eq!(wrong.collect::<Vec<_>>().join("\n"), "");
}

/// What the kit says when it has turned the protection off.
const OFF: &str = "forksafe: FORKSAFE_CONTROL is set: the protection is off in process ";

/// A control run must not pass because a test has no process of its own, or forks by itself.
#[test]
fn a_control_run_reaches_every_test_that_uses_the_kit() {
    let tests = SUBJECTS.map(|(name, _)| format!("control::subjects::{name}"));
    let tests = tests.each_ref().map(String::as_str);
    for Run { test, came, text } in run(&tests, "FORKSAFE_NOTHING") {
        assert!(matches!(came, Came::Passed) && !text.contains(OFF), "{test} should pass: {text}");
    }
    for Run { test, came, text } in run(&tests, "FORKSAFE_CONTROL") {
        assert!(matches!(came, Came::Failed) && text.contains(OFF), "{test} was not reached: {text}");
    }
}

/// Each uses one thing of the kit before it forks, outside of `clean_process`.
const SUBJECTS: [(&str, fn()); 8] = [
    ("a_child_of_the_kit", || testing::child(|| ()).join()),
    ("a_spawned_program", || _ = testing::Spawn::Command.run("true", &[])),
    ("a_witness", || _ = Witness::start()),
    ("a_witness_on_a_unix_socket", || _ = Witness::start_unix()),
    ("steps", || _ = testing::Steps::new(&[])),
    ("a_snapshot", || _ = testing::Snapshot::of(std::process::id())),
    ("an_assertion", || testing::assert_nothing_shared(&[std::process::id()])),
    ("a_server", || _ = testing::PrivateRedis::start_with(&["--databases", "1"])),
];

mod subjects {
    use super::{SUBJECTS, generations_differ};

    macro_rules! subjects {
        ($($name:ident)*) => {$(
            #[test]
            #[ignore = "run by a_control_run_reaches_every_test_that_uses_the_kit"]
            fn $name() {
                let name = stringify!($name);
                SUBJECTS.iter().find(|(subject, _)| *subject == name).unwrap().1();
                assert!(generations_differ(), "the child took itself for its parent");
            }
        )*};
    }

    subjects! {
        a_child_of_the_kit a_spawned_program a_witness a_witness_on_a_unix_socket steps a_snapshot an_assertion a_server
    }
}

/// Of this process and a child that the kit knows nothing of.
fn generations_differ() -> bool {
    let here = forksafe::fork::generation();
    match kit::fork() {
        None => kit::leave(|| assert!(forksafe::fork::generation() > here)),
        Some(child) => kit::exit_code(child) == 0,
    }
}

/// Row 21. What the fallback cannot tell: a child with its parent's pid that came without the fork handlers, so
/// `pid_1_and_its_child_pid_1_are_told_apart` and `a_reused_pid_is_not_taken_for_its_former_owner` are not here.
const WITHOUT_PAGE: &[&str] = &[
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::witness",
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::redis",
    "idle::a_child_opens_its_own_and_the_parent_keeps_its_session::postgres",
    "idle::an_idle_child_keeps_no_connection_of_its_parent_open::witness",
    "idle::grandchildren_are_protected_whenever_they_are_made::witness",
    "idle::ten_generations_deep_each_has_its_own::witness",
    "idle::an_orphan_goes_on::witness",
    "idle::every_pool_is_protected::witness",
    "lent::a_guard_in_a_child_harms_nobody::witness",
    "lent::a_guard_in_a_child_harms_nobody::redis",
    "lent::what_other_threads_held_does_not_count_in_the_child::witness",
    "lent::a_child_of_an_exhausted_pool_is_served_and_so_are_the_parents_waiters::witness",
    "inflight::a_connect_that_overlaps_a_fork_is_done_again",
    "inflight::a_fork_during_validation_harms_nobody",
    "inflight::a_fork_during_a_return_harms_nobody",
    "inflight::a_fork_during_a_close_leaves_no_child_with_the_socket",
    "storm::racing_threads_of_a_child_are_all_served_by_one_new_state::witness",
    "storm::racing_threads_of_a_handlerless_child_take_stock_once",
    "storm::a_storm_of_children_harms_neither_them_nor_their_parent::redis",
    "storm::a_storm_of_children_harms_neither_them_nor_their_parent::postgres",
    "ends::however_a_child_ends_the_parents_sessions_go_on::witness",
    "callbacks::a_child_that_was_forked_in_a_callback_starts_over",
    "hooks::hooks_run_once_per_child_in_order_before_the_first_use_is_served",
];

#[test]
fn without_the_wiped_page_the_fallback_protects() {
    let runs = run(WITHOUT_PAGE, "FORKSAFE_WITHOUT_PAGE");
    let failed = runs.iter().filter(|run| !matches!(run.came, Came::Passed));
    let failed: Vec<_> = failed.map(|run| format!("{}:\n{}", run.test, run.text)).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// That the setting above does something: the fallback cannot see a child that has its parent's pid.
#[test]
fn without_the_wiped_page_a_pid_is_all_there_is() {
    let test = "idle::pid_1_and_its_child_pid_1_are_told_apart::witness";
    let runs = run(&[test], "FORKSAFE_WITHOUT_PAGE");
    assert!(matches!(runs[0].came, Came::Failed), "the documented limit of the fallback is gone: say so in the docs");
}
