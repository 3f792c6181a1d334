//! `Guarded`: clients that are swapped, replaced, taken out and made again.

use crate::kit::{self, Door, exit_code, leave};
use forksafe::Deadline;
use forksafe::fork::{Descriptors, Guarded};
use forksafe::testing::{self, clean_process};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

fn guarded() -> (Guarded<UnixStream>, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(testing::patience())).unwrap();
    (Guarded::new(near, Descriptors::of).unwrap(), far)
}

fn can_write(fd: RawFd) -> bool {
    // SAFETY: one byte of a static; MSG_NOSIGNAL makes a dead peer an error.
    unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) == 1 }
}

fn alive_in_a_child(fd: RawFd) -> bool {
    testing::child(|| can_write(fd)).join()
}

/// Nothing comes any more.
fn has_ended(mut far: &UnixStream) -> bool {
    far.read(&mut [0]).is_ok_and(|read| read == 0)
}

fn hears(mut far: &UnixStream, word: &[u8]) -> bool {
    let mut heard = vec![0; word.len()];
    far.read_exact(&mut heard).is_ok() && heard == word
}

/// Each guard's registration names the other's socket by then.
#[test]
fn a_guard_whose_client_was_swapped_away_ends_only_what_it_has() {
    clean_process(|| {
        let ((mut one, far_one), (mut two, far_two)) = (guarded(), guarded());
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        mem::swap(&mut *one, &mut *two);
        assert_eq!(numbers.map(alive_in_a_child), [false, false]);
        drop(one); // It had what `two` had been made with.
        assert!(has_ended(&far_two));
        two.write_all(b"alive").unwrap();
        assert!(hears(&far_one, b"alive"), "the other one's client was shut down");
        assert_eq!(two.as_raw_fd(), numbers[0]);
        assert!(!alive_in_a_child(numbers[0]), "nobody registered it since, and a child has it dead all the same");
        drop(two);
        assert!(has_ended(&far_one));
    });
}

/// r2d2's idiom of connecting anew in place.
#[test]
fn a_client_that_was_put_in_anothers_place_is_registered_anew() {
    clean_process(|| {
        let (mut client, far_before) = guarded();
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(testing::patience())).unwrap();
        *client = near;
        assert!(has_ended(&far_before));
        Guarded::republish(&mut client, Descriptors::of).unwrap();
        let number = client.as_raw_fd();
        assert!(!alive_in_a_child(number));
        client.write_all(b"alive").unwrap();
        assert!(hears(&far, b"alive"));
        // A child that was forked in the middle of the close has a copy.
        let stray = client.try_clone().unwrap();
        drop(client);
        assert!(has_ended(&far));
        drop(stray);
    });
}

#[test]
fn a_client_that_was_taken_out_by_a_replacement_lives_on() {
    clean_process(|| {
        let (mut client, far_before) = guarded();
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(testing::patience())).unwrap();
        let mut before = mem::replace(&mut *client, near);
        drop(client);
        assert!(has_ended(&far));
        before.write_all(b"alive").unwrap();
        assert!(hears(&far_before, b"alive"), "it was shut down with the other");
        let number = before.as_raw_fd();
        assert!(!alive_in_a_child(number));
        drop(before);
        // What takes the number is somebody else's.
        let (other, _peer) = UnixStream::pair().unwrap();
        assert_eq!(other.as_raw_fd(), number, "the lowest free number");
        assert!(alive_in_a_child(number));
        // And a number that stays free is not filled in a child.
        drop((other, _peer));
        let name = testing::child(|| testing::descriptors(std::process::id()).get(&number).cloned()).join();
        assert!(name.is_none_or(|name| !name.starts_with("socket:")), "{number} was taken by a dead socket");
    });
}

/// Republished while another guard has what it had before.
#[test]
fn two_guards_that_swapped_their_clients_and_said_so_are_as_new() {
    clean_process(|| {
        let ((mut one, far_one), (mut two, far_two)) = (guarded(), guarded());
        mem::swap(&mut *one, &mut *two);
        Guarded::republish(&mut one, Descriptors::of).unwrap();
        Guarded::republish(&mut two, Descriptors::of).unwrap();
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        assert_eq!(numbers.map(alive_in_a_child), [false, false]);
        assert_eq!(numbers.map(can_write), [true, true]);
        let strays = [one.try_clone().unwrap(), two.try_clone().unwrap()];
        drop(one);
        assert!(hears(&far_two, b"x") && has_ended(&far_two));
        assert!(can_write(two.as_raw_fd()) && hears(&far_one, b"xx"));
        drop(two);
        assert!(has_ended(&far_one));
        drop(strays);
    });
}

#[test]
fn a_client_is_taken_out_here_and_not_in_a_child() {
    clean_process(|| {
        let (client, far) = guarded();
        let mut client = Some(client);
        let child = testing::child(|| {
            let refused = Guarded::into_inner(client.take().unwrap()).unwrap_err();
            assert!(Guarded::is_inherited(&refused));
            let why = Guarded::try_ref(&refused).unwrap_err();
            assert_eq!(why.here.pid, std::process::id());
            assert!(why.owner.generation < why.here.generation);
            why.to_string()
        });
        let why = child.join();
        assert!(why.contains(&format!("process {} ", std::process::id())) && why.contains("inherited"), "{why}");
        let mut inner = Guarded::into_inner(client.take().unwrap()).unwrap();
        assert!(alive_in_a_child(inner.as_raw_fd()), "it is not registered any more");
        inner.write_all(b"here").unwrap();
        assert!(hears(&far, b"xhere"));
    });
}

/// A fork of another thread in the middle of the first attempt: the child may have its socket.
#[test]
fn a_client_whose_making_overlapped_a_fork_is_made_again() {
    clean_process(|| {
        let far: Mutex<Vec<UnixStream>> = Mutex::default();
        let (made, forked) = (Door::new(), Door::new());
        let client = thread::scope(|scope| {
            let opens = scope.spawn(|| {
                Guarded::open(
                    Deadline::after(testing::patience()),
                    || {
                        let (near, peer) = UnixStream::pair()?;
                        far.lock().unwrap().push(peer);
                        if far.lock().unwrap().len() == 1 {
                            made.open();
                            forked.pass();
                        }
                        io::Result::Ok(near)
                    },
                    Descriptors::of,
                )
            });
            made.pass();
            testing::child(|| ()).join();
            forked.open();
            opens.join().unwrap().unwrap()
        });
        let far = far.into_inner().unwrap();
        assert_eq!(far.len(), 2);
        assert!(has_ended(&far[0]));
        assert!(can_write(client.as_raw_fd()) && hears(&far[1], b"x"));
    });
}

/// In the child the first attempt is forgotten, and the second is its own.
#[test]
fn a_child_that_is_forked_while_a_client_is_opened_opens_its_own() {
    clean_process(|| {
        for forks_in_descriptors in [false, true] {
            let here = std::process::id();
            let child = Mutex::new(None);
            let far = Mutex::new(Vec::new());
            let fork_once = |here_too: bool| {
                if here_too && child.lock().unwrap().is_none() {
                    *child.lock().unwrap() = Some(kit::fork());
                }
            };
            let opened = Guarded::open(
                Deadline::after(testing::patience()),
                || {
                    let (near, peer) = UnixStream::pair()?;
                    far.lock().unwrap().push(peer);
                    fork_once(!forks_in_descriptors);
                    io::Result::Ok(near)
                },
                |near| {
                    fork_once(forks_in_descriptors);
                    Descriptors::of(near)
                },
            );
            let client = opened.unwrap();
            let far = far.into_inner().unwrap();
            let alive = || !Guarded::is_inherited(&client) && can_write(client.as_raw_fd()) && hears(&far[1], b"x");
            if std::process::id() != here {
                leave(|| assert!(alive() && far.len() == 2));
            }
            assert_eq!(exit_code(child.into_inner().unwrap().flatten().unwrap()), 0);
            assert!(alive() && far.len() == 2, "the fork overlapped: it was made again");
            assert!(has_ended(&far[0]));
        }
    });
}

#[test]
fn what_a_failed_open_says_is_what_comes_back() {
    clean_process(|| {
        let deadline = Deadline::after(Duration::from_secs(1));
        let refused = Guarded::open(deadline, || Err::<UnixStream, _>(io::Error::other("no")), Descriptors::of);
        assert_eq!(refused.unwrap_err().to_string(), "no");
        let unfit = Guarded::open(deadline, || io::Result::Ok(()), |_| Descriptors::of_raw(123_456));
        assert_eq!(unfit.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}
