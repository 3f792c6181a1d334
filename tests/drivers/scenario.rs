//! What each class has to show.

use forksafe::r2d2::R2d2;
use forksafe::testing::{self, Steps, Tap};
use forksafe::{ManageConnection, Pool, PooledConnection};
use std::fmt::Debug;
use std::time::Duration;

/// Each connection is tested at each checkout.
pub(crate) fn pool<M>(manager: M) -> Pool<M>
where
    M: ManageConnection,
{
    let builder = Pool::builder().max_size(4).test_after(Duration::ZERO).test_timeout(testing::patience() / 2);
    builder.build(manager).unwrap()
}

/// *Disowned*: whatever children do, no word of theirs travels on the parent's connections, and no child keeps one alive. `ask` tells
/// which session it is, and fails if the answer is to another question.
pub(crate) fn is_disowned<M>(manager: R2d2<M>, tap: &Tap, children: u32, ask: impl Fn(&mut M::Connection) -> String)
where
    M: r2d2::ManageConnection<Error: Send + Sync>,
{
    println!("{manager:?}");
    let pool = pool(manager);
    let (mut lent, mut idle) = (pool.get().unwrap(), pool.get().unwrap());
    let sessions = [ask(&mut lent), ask(&mut idle)];
    assert_ne!(sessions[0], sessions[1]);
    drop(idle);
    assert_eq!(pool.state().unknown_descriptors, 0);
    let mut lent = Some(lent);
    tap.assert_untouched(|| {
        for n in 0..children {
            let use_it_and_drop_it = || {
                let guard = lent.take().unwrap();
                assert!(PooledConnection::try_as_ref(&guard).is_err_and(|error| error.is_inherited()));
                let own = ask(&mut pool.get().unwrap());
                drop(guard);
                if n % 3 == 0 {
                    pool.close();
                }
                own
            };
            // With and without what a program does at its exit.
            let child = match n % 2 {
                0 => testing::child(use_it_and_drop_it),
                _ => testing::child_then_exit(use_it_and_drop_it),
            };
            let own = child.join();
            assert!(!sessions.contains(&own), "child {n} has its parent's session {own}");
        }
    });
    assert_eq!(ask(lent.as_mut().unwrap()), sessions[0]);
    assert_eq!(ask(&mut pool.get().unwrap()), sessions[1]);
    let steps = Steps::new(&["forked", "ended"]);
    let child = testing::child(|| {
        steps.take("forked");
        steps.wait_for("ended");
    });
    steps.wait_for("forked");
    drop(lent.take());
    pool.close();
    tap.wait_until("the parent's sessions have ended", |all| [1, 2].iter().all(|number| all[number].client_ended));
    steps.take("ended");
    child.join();
}

/// *Never closed*: a child that drops its inherited guard and closes the pool leaves open what the parent has open, and is refused
/// a connection. `write` adds a row, and `rows` counts them.
pub(crate) fn is_never_closed<M>(
    manager: R2d2<M>,
    file: &std::path::Path,
    write: impl Fn(&mut M::Connection),
    rows: impl Fn(&mut M::Connection) -> i64,
) where
    M: r2d2::ManageConnection<Error: Send + Sync + Debug>,
{
    let pool = pool(manager);
    let mut lent = pool.get().unwrap();
    write(&mut lent);
    let mut idle = pool.get().unwrap();
    write(&mut idle);
    drop(idle);
    assert_eq!(pool.state().unknown_descriptors, 0);
    let name = file.file_name().unwrap().to_str().unwrap();
    let held = || {
        let all = testing::descriptors(std::process::id());
        all.into_iter().filter(|(_, file)| file.contains(name)).collect::<Vec<_>>()
    };
    let before = held();
    assert!(before.len() >= 2, "{before:?}");
    let mut lent = Some(lent);
    for n in 0..20 {
        let child = testing::child_then_exit(|| {
            drop(lent.take());
            assert_eq!(held(), before);
            let refused = pool.get().err().unwrap();
            assert!(refused.is_unprotected() && refused.to_string().contains("disconnect"), "{refused}");
            pool.close();
            let still_held = held();
            assert!(before.iter().all(|inherited| still_held.contains(inherited)), "{still_held:?}");
        });
        child.join();
        write(lent.as_mut().unwrap());
        assert_eq!(rows(&mut pool.get().unwrap()), 3 + n);
    }
}
