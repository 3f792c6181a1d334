//! The tests that the guide (`forksafe::testing::guide`) shows, run; and that they can fail.

mod another_client;
mod another_pool;
mod net_user;
mod orders;
mod postgres_user;
mod redis_user;

/// With the protection off: the guide says that they fail then.
#[test]
fn the_tests_of_the_guide_fail_without_the_protection() {
    let tests = [
        "redis_user::workers_count_on_connections_of_their_own",
        "redis_user::a_child_is_silent_on_its_parents_connections",
        "postgres_user::a_transaction_survives_what_workers_do",
        "postgres_user::workers_have_sessions_of_their_own_however_they_are_made",
        "net_user::a_worker_shares_no_connection_with_its_master",
        "net_user::a_worker_is_silent_on_its_masters_connection",
        "net_user::the_net_of_this_program_works",
    ];
    for test in tests {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--test-threads=1"])
            .env("FORKSAFE_CONTROL", "1")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(text.contains("running 1 test"), "there is no test {test}");
        assert!(!output.status.success(), "{test} passed without the protection:\n{text}");
        assert!(text.contains("FORKSAFE_CONTROL is set: the protection is off"), "{test} failed with it:\n{text}");
    }
}
