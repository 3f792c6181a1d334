//! The example `job_worker`, acted on from outside: its processes are killed, its servers are, and then the rows are counted.

use crate::kit::{has_ended, kill};
use forksafe::testing::{Holdings, PrivatePostgres, PrivateRedis, clean_process, wait_until};
use postgres::NoTls;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Where cargo puts the examples of the build that this program is of. `cargo test --test it` alone does not build them.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/job_worker");
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
    let source = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/job_worker")).unwrap();
    let newest = source.map(|file| modified(&file.unwrap().path()).unwrap()).max().unwrap();
    let is_current = modified(&program).is_ok_and(|built| built >= newest);
    assert!(is_current, "{} has to be built: cargo build --all-features --examples", program.display());
    program
}

/// The servers, and what lies in them.
struct Bench {
    redis: PrivateRedis,
    postgres: PrivatePostgres,
}

impl Bench {
    /// Of this test alone: sessions are counted, and servers killed. Redis keeps what it has said yes to.
    fn new() -> Self {
        let redis = PrivateRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        Self { redis, postgres: PrivatePostgres::start_with(&[]) }
    }

    fn command(&self, what: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(what)
            .env_remove("PORT")
            .env("REDIS_URL", self.redis.url())
            .env("DATABASE_URL", self.postgres.url());
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn obey(&self, what: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(what).output().unwrap();
        assert!(status.success(), "{what:?}: {status}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// Their ids. Nobody may take them meanwhile.
    fn enqueue(&self, number: usize, kind: &str, millis: u32) -> BTreeSet<String> {
        let before: BTreeSet<_> = self.list("queue").iter().map(|job| id(job)).collect();
        self.obey(&["enqueue", &number.to_string(), "--kind", kind, "--ms", &millis.to_string()]);
        let new: BTreeSet<_> = self.list("queue").iter().map(|job| id(job)).filter(|id| !before.contains(id)).collect();
        assert_eq!(new.len(), number);
        new
    }

    fn start(&self, workers: u32, threads: u32, options: &[&str]) -> Runner {
        let mut command = self.command(&[&["run"], options].concat());
        command.env("WEB_CONCURRENCY", workers.to_string()).env("RAILS_MAX_THREADS", threads.to_string());
        Runner::start(&mut command)
    }

    fn redis(&self) -> redis::Connection {
        redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap()
    }

    fn ask<T: redis::FromRedisValue>(&self, command: &str, arguments: &[&str]) -> T {
        redis::cmd(command).arg(arguments).query(&mut self.redis()).unwrap()
    }

    fn list(&self, of: &str) -> Vec<String> {
        self.ask("LRANGE", &[&key(of), "0", "-1"])
    }

    /// The lists of those who take, and what is in them.
    fn lists(&self) -> BTreeMap<String, Vec<String>> {
        let lists: Vec<String> = self.ask("ZRANGE", &[&key("lists"), "0", "-1"]);
        lists.into_iter().map(|list| (list.clone(), self.list(&format!("working:{list}")))).collect()
    }

    fn working(&self) -> usize {
        self.lists().values().map(Vec::len).sum()
    }

    /// What a worker has in its hands.
    fn working_of(&self, pid: u32) -> usize {
        self.lists().iter().filter(|(list, _)| owner(list) == pid).map(|(_, jobs)| jobs.len()).sum()
    }

    fn counter(&self, name: &str) -> usize {
        self.ask::<Option<usize>>("HGET", &[&key("counters"), name]).unwrap_or_default()
    }

    fn dead(&self) -> Vec<String> {
        self.ask("ZRANGE", &[&key("dead"), "0", "-1"])
    }

    fn open(&self) -> usize {
        self.list("queue").len() + self.working() + self.ask::<usize>("ZCARD", &[&key("retry")])
    }

    fn rows(&self, question: &str) -> Vec<postgres::Row> {
        self.postgres.config().connect(NoTls).unwrap().query(question, &[]).unwrap()
    }

    /// How many rows each job has written.
    fn written(&self) -> BTreeMap<String, i64> {
        let rows = self.rows("SELECT job, count(*) FROM job_worker_rows GROUP BY job");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn done(&self) -> BTreeSet<String> {
        self.rows("SELECT id FROM job_worker_done").iter().map(|row| row.get(0)).collect()
    }

    fn sum(&self, column: &str) -> usize {
        self.rows(&format!("SELECT coalesce(sum({column}), 0)::bigint FROM job_worker_done"))[0].get::<_, i64>(0)
            as usize
    }

    fn await_done(&self, number: usize) {
        wait_until("so many jobs are done", || self.counter("done") + self.counter("done before") >= number);
    }

    #[track_caller]
    fn assert_done_once(&self, jobs: &BTreeSet<String>) {
        assert_eq!(self.done(), *jobs, "done");
        let written = self.written();
        assert_eq!(written.keys().cloned().collect::<BTreeSet<_>>(), *jobs, "rows");
        assert!(written.values().all(|rows| *rows == 1), "more than one row: {written:?}");
    }

    /// Those of the program.
    fn sessions(&self) -> usize {
        let rows = self.rows("SELECT FROM pg_stat_activity WHERE application_name = 'job_worker'").len();
        // But for who asks.
        rows + self.ask::<String>("CLIENT", &["LIST"]).lines().count() - 1
    }
}

fn key(of: &str) -> String {
    format!("jobs:{{default}}:{of}")
}

fn parsed(job: &str) -> serde_json::Value {
    serde_json::from_str(job).unwrap()
}

fn id(job: &str) -> String {
    parsed(job)["id"].as_str().unwrap().to_owned()
}

/// The pid in the name of a list.
fn owner(list: &str) -> u32 {
    list.split(':').nth(1).unwrap().parse().unwrap()
}

/// A `job_worker run`.
struct Runner {
    master: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Runner {
    fn start(command: &mut Command) -> Self {
        let mut master = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(master.stdout.take().unwrap()), Box::new(master.stderr.take().unwrap())];
        let readers = outputs.map(|output| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(output).lines() {
                    log.lock().unwrap().push(line.unwrap());
                }
            })
        });
        Self { master, log, readers: readers.into() }
    }

    fn workers(&self) -> Vec<u32> {
        let pid = self.master.id();
        let pids = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let pids = pids.split_whitespace().map(|pid| pid.parse().unwrap());
        pids.filter(|pid| !has_ended(*pid)).collect()
    }

    /// How many lines say so.
    fn said(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    /// The processes that have said so.
    fn who_said(&self, what: &str) -> BTreeSet<String> {
        let log = self.log.lock().unwrap();
        let lines = log.iter().filter(|line| line.contains(what));
        lines.map(|line| line.split(':').next().unwrap().to_owned()).collect()
    }

    /// All that it has printed, when all who print have ended.
    #[track_caller]
    fn end(self) -> String {
        kill(self.master.id(), libc::SIGTERM);
        self.await_end()
    }

    #[track_caller]
    fn await_end(mut self) -> String {
        wait_until("the program has ended", || self.master.try_wait().unwrap().is_some());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let log = self.log.lock().unwrap().join("\n");
        let status = self.master.wait().unwrap();
        assert!(status.success(), "{status}:\n{log}");
        log
    }
}

const RUN_AGAIN: &str = "that is gone is run again";

#[test]
fn whoever_is_killed_each_job_is_done_once_and_each_interruption_is_said() {
    clean_process(|| {
        const JOBS: usize = 400;
        let bench = Bench::new();
        let jobs = bench.enqueue(JOBS, "insert", 10);
        let mut runner = bench.start(3, 3, &[]);
        let mut said_before = 0;
        for round in 0..8 {
            bench.await_done(round * 30 + fastrand::usize(5..30));
            if round == 4 {
                let orphans = runner.workers();
                kill(runner.master.id(), libc::SIGKILL);
                wait_until("its workers have seen it", || orphans.iter().all(|pid| has_ended(*pid)));
                runner.master.wait().unwrap();
                runner.readers.drain(..).for_each(|reader| reader.join().unwrap());
                said_before = runner.said(RUN_AGAIN);
                runner = bench.start(3, 3, &[]);
            } else {
                wait_until("there is a worker", || !runner.workers().is_empty());
                let workers = runner.workers();
                let killed = workers[fastrand::usize(..workers.len())];
                kill(killed, libc::SIGKILL);
                // Who says it is not to be the next.
                let all_said = || said_before + runner.said(RUN_AGAIN) == bench.counter("run again");
                wait_until("its jobs are queued again", || {
                    has_ended(killed) && bench.working_of(killed) == 0 && all_said()
                });
            }
        }
        wait_until("all are through", || bench.open() == 0);
        let said = said_before + runner.said(RUN_AGAIN);
        runner.end();
        bench.assert_done_once(&jobs);
        assert!(said > 0, "nobody was interrupted");
        assert_eq!((bench.counter("run again"), bench.sum("interrupted")), (said, said));
        assert_eq!(bench.counter("done") + bench.counter("done before"), JOBS);
        assert_eq!(bench.dead(), Vec::<String>::new());
    });
}

#[test]
fn at_term_jobs_are_finished_and_the_rest_stays_in_the_queue() {
    clean_process(|| {
        let bench = Bench::new();
        let jobs = bench.enqueue(200, "insert", 50);
        let runner = bench.start(2, 3, &[]);
        bench.await_done(12);
        let log = runner.end();
        let queued: BTreeSet<_> = bench.list("queue").iter().map(|job| id(job)).collect();
        assert_eq!(bench.lists(), BTreeMap::new(), "no list is left");
        assert!(queued.len() > 100, "it ended when there was hardly anything left to do: {}", queued.len());
        bench.assert_done_once(&jobs.difference(&queued).cloned().collect());
        assert!(bench.list("queue").iter().all(|job| parsed(job)["interrupted"] == 0 && parsed(job)["attempts"] == 0));
        assert!(!log.contains(RUN_AGAIN), "{log}");
        wait_until("the servers have seen all of them leave", || bench.sessions() == 0);
    });
}

/// What a thread has been given when it is told to end, and has not begun.
#[test]
fn what_has_not_begun_at_term_goes_back_to_the_queue() {
    clean_process(|| {
        let bench = Bench::new();
        let runner = bench.start(1, 1, &[]);
        wait_until("a thread takes jobs", || bench.lists().len() == 1);
        let list = key(&format!("working:{}", bench.lists().keys().next().unwrap()));
        let job = |id: &str, millis| format!(r#"{{"id":"{id}","kind":"sleep","payload":{{"ms":{millis}}}}}"#);
        let (first, second, third) = (job("first", 0), job("second", 5_000), job("third", 0));
        let _: u32 = bench.ask("RPUSH", &[&list, &first, &second, &third]);
        bench.await_done(1);
        runner.end();
        assert_eq!(bench.done(), BTreeSet::from(["first", "second"].map(str::to_owned)));
        assert_eq!(bench.list("queue"), [third]);
    });
}

#[test]
fn a_job_that_does_not_end_in_time_is_killed_with_its_worker_and_queued_again() {
    clean_process(|| {
        let bench = Bench::new();
        let jobs = bench.enqueue(1, "sleep", 3_600_000);
        let runner = bench.start(2, 2, &["--shutdown-timeout", "0.3"]);
        wait_until("it has begun", || bench.working() == 1);
        let log = runner.end();
        assert!(log.contains(&format!("job {} of worker", jobs.first().unwrap())) && log.contains(RUN_AGAIN), "{log}");
        let [job] = &bench.list("queue")[..] else { panic!("{:?}", bench.list("queue")) };
        assert_eq!((id(job), &parsed(job)["interrupted"]), (jobs.first().unwrap().clone(), &1.into()));
        assert_eq!(bench.working(), 0);
    });
}

#[test]
fn a_job_that_hangs_costs_its_worker_and_not_the_jobs_beside_it() {
    clean_process(|| {
        let bench = Bench::new();
        let hangs = bench.enqueue(1, "sleep", 3_600_000);
        let runner = bench.start(1, 2, &["--job-timeout", "0.5", "--shutdown-timeout", "0.5"]);
        wait_until("it has begun", || bench.working() == 1);
        bench.obey(&["enqueue", "20"]);
        bench.await_done(20);
        wait_until("it is found", || runner.said("is wedged") > 0);
        let again = format!("job {} of worker", hangs.first().unwrap());
        wait_until("it is run again", || runner.said(&again) > 0);
        runner.end();
        assert_eq!((bench.done().len(), bench.open()), (20, 1));
    });
}

#[test]
fn a_worker_that_is_replaced_leaves_its_job_to_another() {
    clean_process(|| {
        let bench = Bench::new();
        let jobs = bench.enqueue(1, "sleep", 3_600_000);
        let runner = bench.start(2, 1, &["--shutdown-timeout", "0.3"]);
        let holder =
            || bench.lists().into_iter().find_map(|(list, jobs)| Some((owner(&list), jobs.into_iter().next()?)));
        wait_until("it has begun", || holder().is_some());
        let (first, _) = holder().unwrap();
        kill(first, libc::SIGTERM);
        wait_until("another has it", || holder().is_some_and(|(pid, _)| pid != first));
        let (_, job) = holder().unwrap();
        assert_eq!((id(&job), &parsed(&job)["interrupted"]), (jobs.first().unwrap().clone(), &1.into()));
        let log = runner.end();
        assert!(log.contains(&format!("of worker {first} that is gone is run again (interruption 1)")), "{log}");
    });
}

#[test]
fn what_fails_is_tried_again_until_it_is_dead_and_the_dead_can_be_called_back() {
    clean_process(|| {
        let bench = Bench::new();
        let flaky = bench.enqueue(3, "flaky", 0);
        let failing = &bench.enqueue(2, "fail", 0) | &bench.enqueue(1, "panic", 0);
        let unknown = r#"{"id":"a","kind":"from a newer program"}"#;
        let nonsense = "this is no job";
        let _: u32 = bench.ask("LPUSH", &[&key("queue"), unknown, nonsense]);
        let options = ["--attempts", "3", "--back-off", "0.02"];
        let runner = bench.start(2, 2, &options);
        wait_until("all are through", || bench.open() == 0 && bench.dead().len() == 5);
        let log = runner.end();
        bench.assert_done_once(&flaky);
        assert_eq!(bench.sum("attempts"), 3 * 2, "each failed twice before");
        assert_eq!(bench.counter("retried"), (3 + 3 + 1) * 2);
        let dead: Vec<_> = bench.dead().into_iter().filter(|job| job != nonsense).map(|job| parsed(&job)).collect();
        let errors: BTreeSet<_> = dead.iter().map(|job| job["error"].as_str().unwrap()).collect();
        let unknown = "there is no kind \"from a newer program\" here";
        assert_eq!(errors, BTreeSet::from(["it always does", "it panicked", unknown]));
        assert!(dead.iter().all(|job| job["attempts"] == 3), "{dead:?}");
        for job in &failing {
            assert!(log.contains(&format!("job {job} failed, attempt 2 of 3")), "{log}");
            assert!(log.contains(&format!("job {job} is dead after 3 attempts")), "{log}");
        }
        assert!(log.contains("is put to the dead, for it is no job"), "{log}");

        let status = bench.obey(&["status"]);
        assert!(status.contains("it always does") && status.contains(nonsense), "{status}");
        assert_eq!(bench.obey(&["retry-dead"]), "4 jobs are queued again\n");
        assert!(bench.list("queue").iter().all(|job| parsed(job)["attempts"] == 0));
        assert_eq!(bench.dead(), [nonsense]);
        let runner = bench.start(1, 1, &options);
        wait_until("they are dead again", || bench.open() == 0 && bench.dead().len() == 5);
        runner.end();
    });
}

#[test]
fn a_server_that_dies_is_waited_for_and_that_is_said_once() {
    clean_process(|| {
        const JOBS: usize = 300;
        let mut bench = Bench::new();
        let jobs = bench.enqueue(JOBS, "insert", 20);
        let runner = bench.start(2, 3, &[]);
        bench.await_done(30);
        bench.redis.kill();
        wait_until("both workers have noticed", || runner.who_said("Redis is away").len() == 2);
        bench.redis.restart();
        wait_until("both have noticed", || runner.who_said("Redis is back").len() == 2);
        bench.await_done(bench.counter("done") + 30);
        bench.postgres.kill();
        wait_until("both workers have noticed", || runner.who_said("PostgreSQL is away").len() == 2);
        bench.postgres.restart();
        wait_until("all are through", || bench.open() == 0);
        let log = runner.end();
        bench.assert_done_once(&jobs);
        assert_eq!(bench.sum("attempts"), 0, "what a job can do nothing for does not count against it");
        let said = |what| log.lines().filter(|line| line.contains(what)).count();
        // Those who meet a connection that has died before, after others have found the server again, can say it once more.
        let often = ["Redis is away", "PostgreSQL is away"].map(said);
        assert!(often.iter().all(|often| (2..=8).contains(often)), "{often:?}\n{log}");
    });
}

#[test]
fn an_answer_that_never_came_loses_no_job() {
    clean_process(|| {
        let bench = Bench::new();
        let runner = bench.start(1, 1, &[]);
        wait_until("a thread takes jobs", || bench.lists().len() == 1);
        let list = bench.lists().into_keys().next().unwrap();
        // As if Redis had moved it there for somebody who did not learn of it.
        let job = r#"{"id":"stray","kind":"insert","payload":{"words":"stray"}}"#;
        let _: u32 = bench.ask("RPUSH", &[&key(&format!("working:{list}")), job]);
        bench.await_done(1);
        runner.end();
        bench.assert_done_once(&BTreeSet::from(["stray".to_owned()]));
    });
}

#[test]
fn a_job_that_comes_twice_is_done_once_and_that_is_said() {
    clean_process(|| {
        let bench = Bench::new();
        let runner = bench.start(2, 2, &[]);
        let job = r#"{"id":"twin","kind":"insert","payload":{"words":"twin","ms":50}}"#;
        let _: u32 = bench.ask("LPUSH", &[&key("queue"), job, job, job]);
        bench.await_done(3);
        let log = runner.end();
        bench.assert_done_once(&BTreeSet::from(["twin".to_owned()]));
        assert_eq!((bench.counter("done"), bench.counter("done before")), (1, 2));
        assert_eq!(log.matches("job twin had been done already, and nothing was done again").count(), 2, "{log}");
    });
}

#[test]
fn a_job_that_ends_its_workers_is_dead_in_the_end() {
    clean_process(|| {
        let bench = Bench::new();
        let runner = bench.start(2, 1, &[]);
        let job = r#"{"id":"poison","kind":"sleep","payload":{"ms":3600000},"interrupted":10}"#;
        let _: u32 = bench.ask("LPUSH", &[&key("queue"), job]);
        wait_until("it has begun", || bench.working() == 1);
        let first = bench.lists().into_iter().find(|(_, jobs)| !jobs.is_empty()).map(|(list, _)| owner(&list)).unwrap();
        kill(first, libc::SIGKILL);
        wait_until("it is dead", || bench.dead().len() == 1);
        wait_until("it is said", || runner.said("job poison is dead: its worker was gone in the middle of it") == 1);
        runner.end();
        assert_eq!((bench.open(), bench.done().len()), (0, 0));
    });
}

/// It cannot be looked up; its lease is all that there is.
#[test]
fn a_worker_of_another_machine_is_gone_when_it_is_not_heard_of() {
    clean_process(|| {
        let bench = Bench::new();
        let job = |id: &str| format!(r#"{{"id":"{id}","kind":"insert","payload":{{"words":"x"}}}}"#);
        let now: (u64, u64) = bench.ask("TIME", &[]);
        let (gone, lives) = ("elsewhere:7:1:0", "elsewhere:8:1:0");
        for (list, heard_of) in [(gone, now.0 - 60), (lives, now.0 + 3600)] {
            let _: u32 = bench.ask("ZADD", &[&key("lists"), &(heard_of * 1000).to_string(), list]);
            let _: u32 = bench.ask("LPUSH", &[&key(&format!("working:{list}")), &job(list)]);
        }
        let runner = bench.start(1, 2, &["--lease", "30"]);
        bench.await_done(1);
        // A few rounds later it still is not touched.
        bench.obey(&["enqueue", "20", "--ms", "50"]);
        bench.await_done(21);
        let log = runner.end();
        assert!(log.contains("job elsewhere:7:1:0 of worker 7 that is gone is run again"), "{log}");
        assert_eq!(bench.list(&format!("working:{lives}")), [job(lives)]);
        assert_eq!((bench.written().len(), bench.written()[gone]), (21, 1));
    });
}

#[test]
fn no_connection_is_shared_between_the_processes() {
    clean_process(|| {
        let bench = Bench::new();
        bench.enqueue(400, "insert", 10);
        let runner = bench.start(3, 3, &[]);
        bench.await_done(60);
        let workers = runner.workers();
        let holdings = Holdings::of_trees(&[runner.master.id()]).unwrap();
        let shared = holdings.shared_connections();
        assert!(shared.is_empty(), "{}", shared.iter().map(ToString::to_string).collect::<String>());
        // It has looked at what there is to see: one of each server in the master, more in each worker.
        let of = |pid: u32| {
            let holds =
                |held: &&forksafe::testing::HeldSocket| held.holders.iter().any(|(process, _)| process.pid == pid);
            holdings.sockets().iter().filter(holds).filter(|held| held.socket.is_connected()).count()
        };
        assert!(of(runner.master.id()) >= 2, "{}", of(runner.master.id()));
        assert!(workers.len() == 3 && workers.iter().all(|pid| of(*pid) >= 4), "{workers:?}");
        runner.end();
        wait_until("the servers have seen all of them leave", || bench.sessions() == 0);
    });
}

#[test]
fn without_a_server_it_says_what_to_give() {
    clean_process(|| {
        let say = |what: &[&str]| {
            let mut command = Command::new(program());
            let output = command.args(what).env_remove("REDIS_URL").env_remove("DATABASE_URL").output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{what:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(say(&["run"]).contains("Give --redis URL or set REDIS_URL"));
        let nobody = "redis://127.0.0.1:1/";
        assert!(say(&["run", "--redis", nobody]).contains("Give --postgres URL or set DATABASE_URL"));
        assert!(say(&["enqueue", "1", "--redis", nobody]).contains("Connection refused"));
        assert!(say(&["enqueue", "1", "--kind", "x", "--redis", nobody]).contains("there are insert, sleep"));
        assert!(say(&["dance"]).contains("what is \"dance\"?"));
        assert!(say(&[]).contains("--help"));
    });
}

#[test]
fn a_terminal_has_one_line_and_a_file_has_many() {
    clean_process(|| {
        let bench = Bench::new();
        bench.enqueue(100, "insert", 10);
        let runner = bench.start(1, 2, &[]);
        bench.await_done(100);
        let log = runner.end();
        assert!(log.contains("queue 0, working 0, retry 0, dead 0, done 100, ") && !log.contains('\r'), "{log}");

        bench.enqueue(100, "insert", 10);
        let (mut terminal, inside) = pseudo_terminal();
        let mut command = bench.command(&["run"]);
        let mut master = command.stdout(inside).stderr(Stdio::null()).spawn().unwrap();
        drop(command); // Its copy of the other end.
        bench.await_done(200);
        kill(master.id(), libc::SIGTERM);
        wait_until("it has ended", || master.try_wait().unwrap().is_some());
        let mut shown = String::new();
        // Its end is an error.
        let _ = terminal.read_to_string(&mut shown);
        assert!(shown.matches("\rqueue ").count() > 1, "{shown:?}");
        assert_eq!(shown.matches('\n').count(), 1, "{shown:?}");
        assert!(shown.contains("done 200, "), "{shown:?}");
    });
}

fn pseudo_terminal() -> (File, OwnedFd) {
    let mut ends = [-1; 2];
    let null = std::ptr::null_mut();
    // SAFETY: room for two descriptors, which are then ours; the rest is left to the system.
    unsafe {
        let opened = libc::openpty(&raw mut ends[0], &raw mut ends[1], null, null.cast(), null.cast());
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        libc::fcntl(ends[0], libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(ends[1], libc::F_SETFD, libc::FD_CLOEXEC);
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

#[test]
fn a_drive_needs_nothing_and_shows_that_nothing_is_lost() {
    clean_process(|| {
        let output = Command::new(program()).args(["--drive", "200"]).output().unwrap();
        let (shown, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{shown}\n{log}");
        let row = |what: &str| {
            let line = shown.lines().find_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok());
            line.unwrap_or_else(|| panic!("{what}: {shown}"))
        };
        assert_eq!((row("enqueued"), row("done "), row("dead"), row("lost"), row("twice")), (200, 196, 4, 0, 0));
        assert!(row("interrupted, and run again") > 0 && shown.contains("was killed in the middle"), "{shown}");
    });
}
