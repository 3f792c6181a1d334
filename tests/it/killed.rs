//! What a test has started ends with it, however it ends.

use crate::children::is_running;
use crate::kit;
use forksafe::testing::{self, PrivateRedis, clean_process};
use std::fs;
use std::process::{Command, Stdio};
use std::thread;

const PIDS: &str = "FORKSAFE_IT_PIDS";

#[test]
#[ignore = "run by a_test_whose_harness_is_killed_leaves_nothing_behind, which kills it"]
fn a_test_that_hangs() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--databases", "1"]);
        let child = testing::child(|| {
            let _grandchild = testing::child(thread::park);
            thread::park();
        });
        testing::wait_until("the grandchild is there", || children_of(child.pid()).len() == 1);
        let pids = [vec![std::process::id(), child.pid()], children_of(child.pid()), children_of(std::process::id())];
        let pids: Vec<_> = pids.concat().iter().map(ToString::to_string).collect();
        let file = std::env::var(PIDS).unwrap();
        fs::write(format!("{file}.new"), pids.join(" ")).unwrap();
        fs::rename(format!("{file}.new"), file).unwrap();
        thread::park();
        drop(redis);
    });
}

fn children_of(pid: u32) -> Vec<u32> {
    let all = testing::Process::all().unwrap().into_iter();
    all.filter(|process| process.parent == pid).map(|process| process.pid).collect()
}

/// By a runner with a time limit, say. Nobody is left to end what the test has started.
#[test]
fn a_test_whose_harness_is_killed_leaves_nothing_behind() {
    clean_process(|| {
        let file = std::env::temp_dir().join(format!("forksafe-killed-{}", std::process::id()));
        let mut harness = Command::new(std::env::current_exe().unwrap())
            .args(["killed::a_test_that_hangs", "--exact", "--ignored", "--nocapture"])
            .env(PIDS, &file)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        testing::wait_until("the test has begun", || file.exists());
        let pids = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() >= 5 && pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
        kit::kill(harness.id(), libc::SIGKILL);
        harness.wait().unwrap();
        for pid in pids {
            testing::wait_until(&format!("process {pid} has ended"), || !is_running(pid));
        }
    });
}
