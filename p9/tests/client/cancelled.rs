//! Cancelling: what the client says when a call is given up, and what it waits for. And servers that fall silent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use p9::cancel::Cancel;
use p9::wire::{Data, Qids, R};
use p9::{Errno, Name, Want};

use crate::fake::{FILE, Fake};

/// Polls what `$work` gives until the fake has heard `$what`, then drops it; gives what was heard.
macro_rules! drop_once_heard {
    ($work:expr, $fake:ident, $what:literal) => {
        tokio::select! {
            biased;
            _ = $work => panic!("it was not answered"),
            heard = $fake.hears($what) => heard,
        }
    };
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_is_flushed_and_its_tag_rests_until_the_answer() {
    let (handle, mut fake) = Fake::opened().await;
    let (read, _) = drop_once_heard!(handle.read(0, 4), fake, "Read");
    let (flush, text) = fake.hears("Flush").await;
    assert_eq!(text, format!("Flush {{ oldtag: {read} }}"));
    let (other, _) = drop_once_heard!(handle.read(0, 4), fake, "Read");
    assert_ne!(other, read);
    fake.hears("Flush").await;
    fake.says(flush, R::Flush {}).await;
    // Free again are the flush's own tag and the one that it named.
    let play = async {
        let mut tags = Vec::new();
        for _ in 0..2 {
            tags.push(fake.hears("Read").await.0);
        }
        tags.iter().for_each(|tag| assert!([read, flush].contains(tag), "{tag}"));
        for tag in tags {
            fake.says(tag, R::Read { data: Data(b"abcd") }).await;
        }
    };
    // Once the client has heard it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (one, two, ()) = tokio::join!(handle.read(0, 4), handle.read(4, 4), play);
    assert_eq!((one.unwrap(), two.unwrap()), (Bytes::from_static(b"abcd"), Bytes::from_static(b"abcd")));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_waits_for_the_servers_word() {
    let (handle, mut fake) = Fake::opened().await;
    let (cancel, ended) = (Cancel::default(), AtomicBool::new(false));
    let play = async {
        fake.hears("Write").await;
        cancel.cancel();
        let (flush, _) = fake.hears("Flush").await;
        fake.hears_nothing().await;
        assert!(!ended.load(Ordering::SeqCst));
        fake.says(flush, R::Flush {}).await;
    };
    let write = async {
        let written = cancel.run(handle.write(0, Bytes::from_static(b"x"))).await;
        ended.store(true, Ordering::SeqCst);
        written
    };
    assert_eq!(tokio::join!(write, play).0, Err(Errno::EINTR));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_before_the_flush_is_answered_counts() {
    let (handle, mut fake) = Fake::opened().await;
    let cancel = Cancel::default();
    let play = async {
        let (write, _) = fake.hears("Write").await;
        cancel.cancel();
        let (flush, _) = fake.hears("Flush").await;
        fake.says(write, R::Write { count: 1 }).await;
        fake.says(flush, R::Flush {}).await;
    };
    let (written, ()) = tokio::join!(cancel.run(handle.write(0, Bytes::from_static(b"x"))), play);
    assert_eq!(written.map(|written| written.count), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_flush_holds_a_cancelled_call_only_so_long() {
    let (handle, mut fake) = Fake::opened().await;
    let cancel = Cancel::default();
    let play = async {
        fake.hears("Read").await;
        cancel.cancel();
    };
    let (read, ()) = tokio::join!(cancel.run(handle.read(0, 1)), play);
    assert_eq!(read, Err(Errno::EINTR));
}

#[tokio::test(start_paused = true)]
async fn what_has_not_gone_out_yet_never_does() {
    let (handle, mut fake) = Fake::opened().await;
    // More than the stream holds: the writer is stuck in the middle of it, and what comes next stays behind.
    let writes = futures_util::future::join_all((0..16).map(|i| handle.write(i * 8192, vec![7; 8192].into())));
    let mut writes = Box::pin(writes);
    let stuck = tokio::time::timeout(Duration::from_secs(1), &mut writes).await;
    assert!(stuck.is_err());
    let read = tokio::time::timeout(Duration::from_secs(1), handle.read(0, 4)).await;
    assert!(read.is_err());
    let play = async {
        for _ in 0..16 {
            let (tag, _) = fake.hears("Write").await;
            fake.says(tag, R::Write { count: 8192 }).await;
        }
        fake.hears_nothing().await;
    };
    let (written, ()) = tokio::join!(writes, play);
    assert!(written.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_walk_that_succeeds_although_it_was_flushed_is_clunked_at_a_plain_server() {
    let (root, mut fake) = Fake::attached(false).await;
    let names = [Name::new(b"a").unwrap()];
    let (walk, text) = drop_once_heard!(root.walk(&names, Want::default()), fake, "Walk");
    assert!(text.contains("newfid: 1"), "{text}");
    let (flush, _) = fake.hears("Flush").await;
    // Not before it is certain: the walk might come after the clunk.
    fake.hears_nothing().await;
    let qids = Fake::qids(&[FILE]);
    fake.says(walk, R::Walk { qids: Qids::of(&qids) }).await;
    fake.says(flush, R::Flush {}).await;
    let (clunk, text) = fake.hears("Clunk").await;
    assert_eq!(text, "Clunk { fid: 1 }");
    fake.says(clunk, R::Clunk {}).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, text) = drop_once_heard!(root.walk(&names, Want::default()), fake, "Walk");
    assert!(text.contains("newfid: 1"), "the number is used again: {text}");
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_given_up_goes_its_way() {
    let (handle, mut fake) = Fake::opened().await;
    drop_once_heard!(handle.close(), fake, "Clunk");
    drop(handle);
    fake.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_may_wait_for_ever_as_long_as_the_server_shows_signs_of_life() {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        let (read, _) = fake.hears("Read").await;
        for _ in 0..100 {
            let (tag, _) = fake.hears("Flush").await;
            fake.says(tag, R::Flush {}).await;
        }
        fake.says(read, R::Read { data: Data(b"late") }).await;
    };
    let (read, ()) = tokio::join!(handle.read(0, 4), play);
    assert_eq!(read.unwrap(), "late");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_when_it_is_asked_is_given_up() {
    let (handle, mut fake) = Fake::opened().await;
    let start = tokio::time::Instant::now();
    let play = async {
        fake.hears("Read").await;
        fake.hears("Flush").await;
        assert_eq!(fake.hear().await, None);
    };
    let (read, ()) = tokio::join!(handle.read(0, 4), play);
    assert_eq!(read, Err(Errno::EHOSTUNREACH));
    // The clock is paused: this is what was promised, not how fast this machine is.
    assert!(start.elapsed() <= Duration::from_secs(46));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_trickles_in_is_a_sign_of_life() {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        let (tag, _) = fake.hears("Read").await;
        let mut frame = Vec::new();
        R::Read { data: Data(b"slow") }.encode(tag, &mut frame);
        for byte in frame {
            tokio::time::sleep(Duration::from_secs(6)).await;
            fake.sends(&[byte]).await;
        }
    };
    let (read, ()) = tokio::join!(handle.read(0, 4), play);
    assert_eq!(read.unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_still_takes_what_is_sent_is_not_given_up() {
    let (handle, mut fake) = Fake::opened().await;
    let play = async {
        // The stream holds half of it; the answer to the first write is long in coming.
        let mut tags = Vec::new();
        for i in 0..16 {
            tokio::time::sleep(Duration::from_secs(if i < 7 { 14 } else { 0 })).await;
            tags.push(fake.hears("Write").await.0);
        }
        for tag in tags {
            fake.says(tag, R::Write { count: 8192 }).await;
        }
    };
    let writes = futures_util::future::join_all((0..16).map(|i| handle.write(i * 8192, vec![7; 8192].into())));
    let (written, ()) = tokio::join!(writes, play);
    assert!(written.iter().all(Result::is_ok), "{written:?}");
}
