//! Leases at the tree itself: who is asked, who waits and for how long, and what local processes do to them.
//!
//! Two clients are two roots of one disk. Where a time is waited for the clock is tokio's, paused.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fileserver::leases::Source;
use fileserver::{Disk, DiskOptions, LeaseOptions, Leases};
use p9::cancel::Cancel;
use p9::tree::{Lease, LeaseKind, Lock, LockKind};
use p9::{Errno, How, NodeRef, SetAttr};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use crate::common::{dir, name, put, touch, walk};

/// A disk of its own authority, and what two clients see of it.
struct Two {
    dir: TempDir,
    leases: Arc<Leases>,
    a: NodeRef,
    b: NodeRef,
}

fn two() -> Two {
    two_with(LeaseOptions::default())
}

fn two_with(options: LeaseOptions) -> Two {
    let (dir, leases) = (tempfile::tempdir().unwrap(), Leases::new(options));
    let disk = Disk::open(dir.path(), DiskOptions { leases: leases.clone(), ..DiskOptions::new([7; 32]) }).unwrap();
    Two { a: disk.root_for(1), b: disk.root_for(2), dir, leases }
}

/// A lease, and what its holder is told.
struct Held {
    lease: Option<Lease>,
    told: UnboundedReceiver<LeaseKind>,
}

impl Held {
    fn kind(&self) -> LeaseKind {
        self.lease.as_ref().map_or(LeaseKind::None, |lease| lease.kind)
    }

    fn give_back(&mut self) {
        self.lease = None;
    }

    fn is_told(&mut self) -> Option<LeaseKind> {
        self.told.try_recv().ok()
    }
}

async fn hold(node: &NodeRef, kind: LeaseKind) -> Held {
    let (sender, told) = unbounded_channel();
    let on_break = Arc::new(move |keep| sender.send(keep).unwrap_or(()));
    Held { lease: node.lease(kind, on_break).await.unwrap(), told }
}

/// Runs `work` until it waits for something; gives its answer if it did not have to.
macro_rules! begun {
    ($work:ident) => {
        poll_fn(|cx| {
            Poll::Ready(match $work.as_mut().poll(cx) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            })
        })
        .await
    };
}

#[tokio::test]
async fn a_change_waits_until_others_gave_their_leases_back() {
    let Two { dir: _dir, leases, a, b } = two();
    let mut held = hold(&a, LeaseKind::Attr).await;
    assert_eq!(held.kind(), LeaseKind::Attr);
    let mut making = Box::pin(b.create(name("d"), dir(0o755)));
    assert!(begun!(making).is_none());
    // What is looked up first is on the pool.
    let told = tokio::select! {
        told = held.told.recv() => told,
        _ = &mut making => panic!("it did not wait"),
    };
    assert_eq!(told, Some(LeaseKind::None));
    assert!(begun!(making).is_none(), "not before it was given back");
    held.give_back();
    making.await.unwrap();
    assert_eq!(leases.live(), 0);
}

#[tokio::test]
async fn own_operations_break_no_own_leases() {
    let Two { dir, leases, a, .. } = two();
    let mut held = hold(&a, LeaseKind::Attr).await;
    touch(&a, "mine").await;
    let file = walk(&a, "mine").await.unwrap();
    let mut on_file = hold(&file, LeaseKind::Attr).await;
    file.set_attr(SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.unwrap();
    a.rename(name("mine"), &a, name("still"), 0).await.unwrap();
    assert_eq!(leases.live(), 2);
    // What a stranger does comes after all that in the kernel's queue.
    assert!(std::process::Command::new("touch").arg(dir.path().join("theirs")).status().unwrap().success());
    assert_eq!(held.told.recv().await, Some(LeaseKind::None));
    assert_eq!((held.is_told(), on_file.is_told()), (None, None));
}

#[tokio::test]
async fn two_clients_create_in_one_directory() {
    let Two { dir: _dir, a, b, .. } = two();
    let (mut of_a, mut of_b) = (hold(&a, LeaseKind::Attr).await, hold(&b, LeaseKind::Attr).await);
    let releases = async {
        of_a.told.recv().await;
        of_a.give_back();
        of_b.told.recv().await;
        of_b.give_back();
    };
    tokio::join!(async { touch(&a, "a").await }, async { touch(&b, "b").await }, releases);
    assert!(walk(&a, "b").await.is_ok() && walk(&b, "a").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_release_that_waits_for_the_holders_own_create_does_not_deadlock() {
    let Two { dir: _dir, leases, a, b } = two();
    // As when the holder's kernel has the directory locked until its create is answered.
    let (mut of_a, mut of_b) = (hold(&a, LeaseKind::Attr).await, hold(&b, LeaseKind::Attr).await);
    let begun = Instant::now();
    let one = async {
        touch(&a, "a").await;
        of_a.give_back();
    };
    let other = async {
        touch(&b, "b").await;
        of_b.give_back();
    };
    tokio::join!(one, other);
    assert!(begun.elapsed() <= Duration::from_secs(6), "it took {:?}", begun.elapsed());
    assert_eq!(leases.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_never_answers_is_waited_for_5_seconds() {
    let Two { dir: _dir, leases, a, b } = two();
    let mut held = hold(&a, LeaseKind::Attr).await;
    let begun = Instant::now();
    touch(&b, "f").await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(held.is_told(), Some(LeaseKind::None));
    assert_eq!(leases.live(), 0, "it has lost the lease");
    // And gets none for a while, so that it keeps nobody waiting again.
    assert_eq!(hold(&a, LeaseKind::Attr).await.kind(), LeaseKind::None);
    let begun = Instant::now();
    touch(&b, "g").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(hold(&a, LeaseKind::Attr).await.kind(), LeaseKind::Attr);
}

#[tokio::test(start_paused = true)]
async fn a_holder_of_changes_that_never_answers_is_shut_out_after_30_seconds() {
    let Two { dir: _dir, a, b, .. } = two();
    let late = touch(&a, "f").await;
    let held = hold(&late.node, LeaseKind::Write).await;
    assert_eq!(held.kind(), LeaseKind::Write);
    let begun = Instant::now();
    put(&b, "f", "of b").await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30);
    let write = |text: &'static str| late.handle.as_ref().unwrap().write(0, Bytes::from_static(text.as_bytes()));
    assert_eq!(write("held back").await.err(), Some(Errno::ESTALE));
    let again = walk(&a, "f").await.unwrap().open(How::WRITE).await.unwrap();
    assert!(again.write(0, Bytes::from_static(b"OF")).await.is_ok());
    assert_eq!(crate::common::cat(&b, "f").await.unwrap(), "OF b");
}

#[tokio::test]
async fn what_is_held_back_is_waited_for_before_others_look() {
    let Two { dir: _dir, a, b, .. } = two();
    let made = touch(&a, "f").await;
    let seen = walk(&b, "f").await.unwrap();
    for open in [false, true] {
        let mut held = hold(&made.node, LeaseKind::Write).await;
        assert_eq!(held.kind(), LeaseKind::Write);
        let flush = async {
            let keep = held.told.recv().await.unwrap();
            let text = if open { "second" } else { "first" };
            made.handle.as_ref().unwrap().write(0, Bytes::from_static(text.as_bytes())).await.unwrap();
            held.lease.as_ref().unwrap().keep(keep);
            keep
        };
        if open {
            let (read, keep) = tokio::join!(crate::common::cat(&b, "f"), flush);
            assert_eq!((read.unwrap(), keep), (Bytes::from_static(b"second"), LeaseKind::Attr));
        } else {
            let (attr, keep) = tokio::join!(seen.attr(), flush);
            assert_eq!((attr.unwrap().size, keep), (5, LeaseKind::Read));
        }
    }
}

#[tokio::test]
async fn a_listing_leaves_out_the_attributes_that_another_holds_back() {
    let Two { dir: _dir, a, b, .. } = two();
    let made = touch(&a, "f").await;
    let attrs = async |root: &NodeRef| {
        let p9::Handle::Dir(open) = root.open(How::READ).await.unwrap() else { panic!("no directory") };
        let mut known = Vec::new();
        let mut each = |entry: p9::Entry<'_>| {
            known.push(entry.attr.is_some());
            std::ops::ControlFlow::Continue(())
        };
        open.list(0, &mut each).await.unwrap();
        known
    };
    let _held = hold(&made.node, LeaseKind::Write).await;
    assert_eq!((attrs(&a).await, attrs(&b).await), (vec![true], vec![false]));
}

#[tokio::test]
async fn while_one_client_writes_others_are_granted_nothing() {
    let Two { dir: _dir, a, b, .. } = two();
    let made = touch(&a, "f").await;
    let seen = walk(&b, "f").await.unwrap();
    assert_eq!(hold(&seen, LeaseKind::Read).await.kind(), LeaseKind::None);
    assert_eq!(hold(&made.node, LeaseKind::Write).await.kind(), LeaseKind::Write);
    drop(made);
    assert_eq!(hold(&seen, LeaseKind::Read).await.kind(), LeaseKind::Read);
}

#[tokio::test]
async fn who_opens_for_writing_keeps_the_contents_only_while_nobody_else_can() {
    let Two { dir, a, .. } = two();
    put(&a, "f", "text").await.unwrap();
    let file = walk(&a, "f").await.unwrap();
    let mut held = hold(&file, LeaseKind::Read).await;
    assert_eq!(held.kind(), LeaseKind::Read);
    let writer = file.open(How::WRITE).await.unwrap();
    assert_eq!(held.is_told(), None, "the only one who has it open");
    // Now a stranger has to wait.
    let path = dir.path().join("f");
    let stranger = tokio::task::spawn_blocking(move || std::fs::read(path).unwrap());
    assert_eq!(held.told.recv().await, Some(LeaseKind::Attr));
    held.lease.as_ref().unwrap().keep(LeaseKind::Attr);
    assert_eq!(stranger.await.unwrap(), b"text");
    drop(writer);
}

#[tokio::test]
async fn a_local_writer_waits_until_the_contents_are_leased_no_more() {
    let Two { dir, leases, a, .. } = two();
    put(&a, "f", "text").await.unwrap();
    let file = walk(&a, "f").await.unwrap();
    let mut held = hold(&file, LeaseKind::Read).await;
    assert_eq!(held.kind(), LeaseKind::Read);
    let path = dir.path().join("f");
    // Without waiting it is refused: so it does wait otherwise.
    let nonblock = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let refused = rustix::fs::open(&path, nonblock, rustix::fs::Mode::empty());
    assert_eq!(refused.err(), Some(rustix::io::Errno::AGAIN));
    let writer = tokio::task::spawn_blocking(move || std::fs::write(path, "other").unwrap());
    assert_eq!(held.told.recv().await, Some(LeaseKind::Attr));
    held.lease.as_ref().unwrap().keep(LeaseKind::Attr);
    writer.await.unwrap();
    // And what it does ends the lease on the attributes, too.
    assert_eq!(held.told.recv().await, Some(LeaseKind::None));
    held.give_back();
    assert_eq!(leases.live(), 0);
}

#[tokio::test]
async fn a_local_writer_is_let_in_at_last() {
    let options = LeaseOptions { release: Duration::from_millis(50), ..LeaseOptions::default() };
    let Two { dir, a, .. } = two_with(options);
    put(&a, "f", "text").await.unwrap();
    let held = hold(&walk(&a, "f").await.unwrap(), LeaseKind::Read).await;
    assert_eq!(held.kind(), LeaseKind::Read);
    let path = dir.path().join("f");
    tokio::task::spawn_blocking(move || std::fs::write(path, "other").unwrap()).await.unwrap();
}

#[tokio::test]
async fn there_is_no_lease_on_contents_where_a_local_writer_cannot_be_kept_out() {
    let Two { dir, a, .. } = two();
    put(&a, "f", "text").await.unwrap();
    let writer = std::fs::File::options().write(true).open(dir.path().join("f")).unwrap();
    let file = walk(&a, "f").await.unwrap();
    assert_eq!(hold(&file, LeaseKind::Write).await.kind(), LeaseKind::Attr);
    let ours = file.open(How::WRITE).await.unwrap();
    assert_eq!(hold(&file, LeaseKind::Write).await.kind(), LeaseKind::Attr);
    drop((writer, ours));
    assert_eq!(hold(&file, LeaseKind::Read).await.kind(), LeaseKind::Read);
}

#[tokio::test]
async fn changes_by_local_processes_end_leases() {
    for source in [Source::Best, Source::Inotify] {
        let Two { dir, a, .. } = two_with(LeaseOptions { source, ..LeaseOptions::default() });
        let at = |name: &str| dir.path().join(name);
        touch(&a, "f").await;
        a.create(name("d"), crate::common::dir(0o755)).await.unwrap();
        let file = walk(&a, "f").await.unwrap();
        let told = async |node: &NodeRef, change: &dyn Fn()| {
            let mut held = hold(node, LeaseKind::Attr).await;
            assert_eq!(held.kind(), LeaseKind::Attr);
            change();
            assert_eq!(held.told.recv().await, Some(LeaseKind::None), "{source:?}");
        };
        told(&a, &|| std::fs::write(at("new"), "").unwrap()).await;
        told(&a, &|| std::fs::rename(at("new"), at("d/new")).unwrap()).await;
        told(&a, &|| std::fs::remove_dir_all(at("d")).unwrap()).await;
        told(&file, &|| std::fs::write(at("f"), "text").unwrap()).await;
        told(&file, &|| std::fs::hard_link(at("f"), at("g")).unwrap()).await;
        // By another name, and in a directory that nobody watches.
        let elsewhere = tempfile::tempdir().unwrap();
        if std::fs::hard_link(at("f"), elsewhere.path().join("h")).is_ok() {
            told(&file, &|| std::fs::write(elsewhere.path().join("h"), "more").unwrap()).await;
        }
        told(&file, &|| std::fs::remove_file(at("f")).unwrap()).await;
    }
}

#[tokio::test]
async fn a_waiting_operation_can_be_cancelled_and_leaves_nothing() {
    let Two { dir, leases, a, b } = two();
    let mut held = hold(&a, LeaseKind::Attr).await;
    let cancel = Cancel::default();
    let run = cancel.run(async { b.create(name("d"), crate::common::dir(0o755)).await.map(drop) });
    let (answer, ()) = tokio::join!(run, async {
        held.told.recv().await;
        cancel.cancel();
    });
    assert_eq!(answer, Err(Errno::EINTR));
    assert!(!dir.path().join("d").exists());
    held.give_back();
    assert_eq!(leases.live(), 0);
    assert_eq!(hold(&a, LeaseKind::Attr).await.kind(), LeaseKind::Attr, "nothing stands in the way any more");
}

#[tokio::test]
async fn after_three_breaks_there_is_no_write_back_lease() {
    let Two { dir: _dir, a, b, .. } = two();
    let made = touch(&a, "f").await;
    let seen = walk(&b, "f").await.unwrap();
    for _ in 0..3 {
        let mut held = hold(&made.node, LeaseKind::Write).await;
        assert_eq!(held.kind(), LeaseKind::Write);
        let (attr, ()) = tokio::join!(seen.attr(), async {
            held.told.recv().await;
            held.give_back();
        });
        attr.unwrap();
    }
    assert_eq!(hold(&made.node, LeaseKind::Write).await.kind(), LeaseKind::Read);
}

#[tokio::test]
async fn a_lock_ends_leases_on_contents_and_is_not_refused_for_them() {
    let Two { dir: _dir, a, b, .. } = two();
    put(&a, "f", "text").await.unwrap();
    let (file, seen) = (walk(&a, "f").await.unwrap(), walk(&b, "f").await.unwrap());
    let mut held = hold(&file, LeaseKind::Read).await;
    assert_eq!(held.kind(), LeaseKind::Read);
    let lock = Lock { kind: LockKind::Write, start: 0, length: 0, owner: 1, pid: 1 };
    let (locked, told) = tokio::join!(seen.lock(lock, false), async {
        let told = held.told.recv().await;
        held.lease.as_ref().unwrap().keep(LeaseKind::Attr);
        told
    });
    assert_eq!((locked, told), (Ok(()), Some(LeaseKind::Attr)));
}

#[tokio::test]
async fn no_more_is_leased_than_may_be() {
    let Two { dir: _dir, a, .. } = two_with(LeaseOptions { most: 2, ..LeaseOptions::default() });
    let mut held = Vec::new();
    for called in ["1", "2", "3"] {
        let made = touch(&a, called).await.node;
        held.push(hold(&made, LeaseKind::Attr).await);
    }
    let kinds: Vec<_> = held.iter().map(Held::kind).collect();
    assert_eq!(kinds, [LeaseKind::Attr, LeaseKind::Attr, LeaseKind::None]);
    held.pop();
    held.pop();
    assert_eq!(hold(&a, LeaseKind::Attr).await.kind(), LeaseKind::Attr);
}

#[tokio::test]
async fn changes_can_be_read_as_lines() {
    let Two { dir, a, .. } = two();
    let events = a.events().await.unwrap();
    let mut reading = events.read(0, 4096);
    assert!(poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut reading).poll(cx).is_pending())).await, "it waits");
    std::fs::write(dir.path().join("a\nb"), "").unwrap();
    let mut text = String::from_utf8(reading.await.unwrap().to_vec()).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    put(&a, "ours", "text").await.unwrap();
    std::fs::remove_dir(dir.path().join("d")).unwrap();
    let wanted = ["create a\\012b\n", "create d/\n", "create ours\n", "modify ours\n", "delete d/\n"];
    while !wanted.iter().all(|line| text.contains(line)) {
        text += std::str::from_utf8(&events.read(0, 4096).await.unwrap()).unwrap();
    }
    let file = touch(&a, "f").await.node;
    assert_eq!(file.events().await.err(), Some(Errno::ENOTDIR));
}

/// What a listing of `node` tells of the attributes of each entry.
async fn listed(node: &NodeRef) -> Vec<(String, bool)> {
    let p9::Handle::Dir(dir) = node.open(How { directory: true, ..How::READ }).await.unwrap() else { panic!("a dir") };
    let mut all = Vec::new();
    let each = &mut |entry: p9::Entry<'_>| {
        all.push((String::from_utf8_lossy(entry.name.as_bytes()).into_owned(), entry.attr.is_some()));
        std::ops::ControlFlow::Continue(())
    };
    dir.list(0, each).await.unwrap();
    all.sort();
    all
}

#[tokio::test]
async fn a_lease_on_a_directorys_contents_covers_the_attributes_of_what_was_listed() {
    let Two { dir, leases, a, b } = two();
    for name in ["changed", "other"] {
        touch(&a, name).await;
    }
    std::fs::hard_link(dir.path().join("other"), dir.path().join("linked")).unwrap();
    // By whatever name.
    for name in ["changed", "linked"] {
        let mut held = hold(&a, LeaseKind::Read).await;
        assert_eq!(held.kind(), LeaseKind::Read);
        let theirs = walk(&b, name).await.unwrap();
        let change = SetAttr { mode: Some(0o640), ..SetAttr::default() };
        theirs.set_attr(change).await.unwrap();
        assert_eq!(held.is_told(), None, "nothing was told yet");
        assert!(listed(&a).await.iter().all(|(_, known)| *known));
        let mut changing = Box::pin(theirs.set_attr(change));
        let told = tokio::select! {
            told = held.told.recv() => told,
            _ = &mut changing => panic!("it did not wait"),
        };
        assert_eq!(told, Some(LeaseKind::Attr), "the names stay");
        held.lease.as_ref().unwrap().keep(LeaseKind::Attr);
        changing.await.unwrap();
        theirs.set_attr(change).await.unwrap();
        assert_eq!(held.is_told(), None, "it covers the names alone now");
    }
    assert_eq!(leases.live(), 0);
}

#[tokio::test]
async fn what_another_writes_is_listed_without_attributes_under_a_lease_on_contents() {
    let Two { dir: _dir, a, b, .. } = two();
    touch(&a, "written").await;
    touch(&a, "still").await;
    let writer = walk(&b, "written").await.unwrap().open(How::WRITE).await.unwrap();
    let held = hold(&a, LeaseKind::Read).await;
    assert_eq!(listed(&a).await, [("still".into(), true), ("written".into(), false)]);
    // What is ours is ours.
    let own = walk(&a, "still").await.unwrap().open(How::WRITE).await.unwrap();
    assert_eq!(listed(&a).await, [("still".into(), true), ("written".into(), false)]);
    drop((held, own, writer));
    assert_eq!(listed(&a).await, [("still".into(), true), ("written".into(), true)]);
}

#[tokio::test]
async fn a_local_process_that_writes_a_listed_file_takes_its_attributes_alone() {
    let Two { dir, a, .. } = two();
    touch(&a, "f").await;
    let mut held = hold(&a, LeaseKind::Read).await;
    assert_eq!(listed(&a).await, [("f".into(), true)]);
    let write = format!("echo more >>{}", dir.path().join("f").display());
    assert!(std::process::Command::new("sh").args(["-c", &write]).status().unwrap().success());
    assert_eq!(held.told.recv().await, Some(LeaseKind::Attr));
    held.lease.as_ref().unwrap().keep(LeaseKind::Attr);
    assert!(std::process::Command::new("touch").arg(dir.path().join("new")).status().unwrap().success());
    assert_eq!(held.told.recv().await, Some(LeaseKind::None));
}
