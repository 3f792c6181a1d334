//! What a subscriber of `tracing` and a recorder of `metrics` hear of a pool.

use crate::kit;
use forksafe::fork;
use forksafe::testing::{self, Witness, advance_clock, clean_process};
use forksafe::{Pool, PooledConnection};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata as MetricMetadata, Recorder,
    SharedString, Unit,
};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// Is told of each event of ours.
struct Hears<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Subscriber for Hears<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "forksafe"
    }
    fn event(&self, event: &Event<'_>) {
        self.0(event);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// One line for each event, without times and places.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "took" | "age" | "location" | "held_for" | "usage" | "generation" => write!(self.0, " {}", field.name()),
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        }
        .unwrap();
    }
}

impl Lines {
    fn note(&self, event: &Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
}

#[test]
fn a_subscriber_hears_of_all_that_is_out_of_the_ordinary() {
    clean_process(|| {
        let lines = Lines::default();
        let heard = || std::mem::take(&mut *lines.0.lock().unwrap());
        let notes = lines.clone();
        tracing::subscriber::set_global_default(Hears(move |event: &Event<'_>| notes.note(event))).unwrap();
        let mut witness = Some(Witness::start());
        let pool = Pool::builder()
            .name("web")
            .max_size(1)
            .max_waiting(Some(0))
            .slow_threshold(Duration::ZERO)
            .leak_threshold(Some(Duration::from_secs(60)))
            .build(witness.as_ref().unwrap().manager())
            .unwrap();
        let conn = pool.get().unwrap();
        assert_eq!(
            heard(),
            [
                r#"DEBUG first use of the pool in this process pool="web" inherited=0 generation"#,
                r#"DEBUG connection opened pool="web" connection=0 took"#,
                r#"WARN slow checkout pool="web" took location"#,
            ]
        );
        assert!(pool.get().is_err());
        assert_eq!(heard(), [r#"WARN turned away pool="web" usage"#]);
        advance_clock(Duration::from_secs(70));
        pool.maintain();
        pool.maintain();
        assert_eq!(heard(), [r#"WARN a connection is held for too long pool="web" held_for location"#]);
        PooledConnection::discard(conn);
        assert_eq!(heard(), [r#"DEBUG connection closed pool="web" connection=0 age reason="discarded""#]);
        drop(pool.get().unwrap());
        heard();
        drop(pool.get().unwrap());
        assert!(heard().is_empty(), "nothing of what is in order");
        pool.disconnect();
        heard();
        drop(witness.take());
        assert!(pool.get().is_err());
        let lines = heard();
        assert!(lines[0].starts_with(r#"WARN cannot open a connection pool="web" error="#), "{lines:?}");
    });
}

/// Sums of counters, last values of gauges, numbers of values of histograms.
#[derive(Clone, Default)]
struct Sums(Arc<Mutex<BTreeMap<String, u64>>>);

struct One(Sums, String);

impl One {
    fn change(&self, change: impl FnOnce(&mut u64)) {
        change(self.0.0.lock().unwrap().entry(self.1.clone()).or_default());
    }
}

impl CounterFn for One {
    fn increment(&self, value: u64) {
        self.change(|sum| *sum += value);
    }
    fn absolute(&self, value: u64) {
        self.change(|sum| *sum = value);
    }
}

impl GaugeFn for One {
    fn increment(&self, _: f64) {
        unreachable!("they are set");
    }
    fn decrement(&self, _: f64) {
        unreachable!("they are set");
    }
    fn set(&self, value: f64) {
        self.change(|last| *last = value as u64);
    }
}

impl HistogramFn for One {
    fn record(&self, value: f64) {
        assert!(value < testing::patience().as_secs_f64());
        self.change(|number| *number += 1);
    }
}

impl Sums {
    fn one(&self, key: &Key) -> Arc<One> {
        let labels = key.labels().map(|label| label.value()).filter(|value| *value != "web");
        let name = key.name().trim_start_matches("forksafe_").to_owned();
        assert!(key.labels().any(|label| label.key() == "pool" && label.value() == "web"), "{key}");
        Arc::new(One(self.clone(), labels.fold(name, |name, label| format!("{name} {label}"))))
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &MetricMetadata<'_>) -> Counter {
        Counter::from_arc(self.one(key))
    }
    fn register_gauge(&self, key: &Key, _: &MetricMetadata<'_>) -> Gauge {
        Gauge::from_arc(self.one(key))
    }
    fn register_histogram(&self, key: &Key, _: &MetricMetadata<'_>) -> Histogram {
        Histogram::from_arc(self.one(key))
    }
}

#[test]
fn a_recorder_has_the_numbers() {
    clean_process(|| {
        let sums = Sums::default();
        let read = || sums.0.lock().unwrap().iter().map(|(name, sum)| format!("{name} {sum}")).collect::<Vec<_>>();
        metrics::set_global_recorder(sums.clone()).unwrap();
        let mut witness = Some(Witness::start());
        let pool = kit::tested().name("web").max_size(2).build(witness.as_ref().unwrap().manager()).unwrap();
        drop(pool.get().unwrap());
        drop(pool.get().unwrap());
        let (lent, other) = (pool.get().unwrap(), pool.get().unwrap());
        assert!(pool.get_timeout(Duration::from_millis(500)).is_err()); // Time enough to come to the line.
        PooledConnection::discard(other);
        drop(witness.take());
        assert!(pool.get().is_err());
        pool.maintain();
        assert_eq!(
            read(),
            [
                "checkouts_timed_out_total 1",
                "checkouts_total 4",
                "connect_seconds 2",
                "connections idle 0",
                "connections in use 1",
                "connections_closed_total discarded 1",
                "connections_failed_total 1",
                "connections_inherited_total 0",
                "connections_max 2",
                "connections_opened_total 2",
                "test_seconds 2",
                "wait_seconds 1",
                "waiting 0",
            ]
        );
        drop(lent);
    });
}

/// Its lock may have been held at the fork: whatever puts that right is a hook.
#[test]
fn a_child_tells_nobody_before_its_hooks_are_through() {
    static IN_HOOK: AtomicBool = AtomicBool::new(false);
    static TOO_SOON: AtomicU32 = AtomicU32::new(0);
    static HEARD: AtomicU32 = AtomicU32::new(0);
    fn hear() {
        HEARD.fetch_add(1, SeqCst);
        TOO_SOON.fetch_add(u32::from(IN_HOOK.load(SeqCst)), SeqCst);
    }
    struct Ears;
    impl Recorder for Ears {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &MetricMetadata<'_>) -> Counter {
            hear();
            Counter::noop()
        }
        fn register_gauge(&self, _: &Key, _: &MetricMetadata<'_>) -> Gauge {
            hear();
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &MetricMetadata<'_>) -> Histogram {
            hear();
            Histogram::noop()
        }
    }
    clean_process(|| {
        tracing::subscriber::set_global_default(Hears(|_: &Event<'_>| hear())).unwrap();
        metrics::set_global_recorder(Ears).unwrap();
        let witness = Witness::start();
        let pool = kit::tested().build(witness.manager()).unwrap();
        kit::ask(&pool);
        assert!(HEARD.swap(0, SeqCst) > 0);
        let uses = pool.clone();
        fork::on_child(move || {
            IN_HOOK.store(true, SeqCst);
            kit::ask(&uses);
            PooledConnection::discard(uses.get().unwrap());
            IN_HOOK.store(false, SeqCst);
        });
        let child = testing::child(|| {
            kit::ask(&pool);
            pool.maintain();
            (TOO_SOON.load(SeqCst), HEARD.load(SeqCst) > 0)
        });
        assert_eq!(child.join(), (0, true));
    });
}
