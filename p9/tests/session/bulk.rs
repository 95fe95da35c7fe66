//! The lane for bulk: nothing small waits behind it, and nothing goes wrong when it breaks or cannot be had.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use p9::server::SessionLimits;
use p9::{Handle, How, Name, NodeRef, Want};
use tokio::time::{sleep, timeout};

use crate::net::{Net, PATIENCE};
use crate::ram::Ram;

/// Bytes of one message of bulk.
const PIECE: usize = 100_000;
/// The codes of Tgetattr, Rread, Twrite, Tclunk and Tfsync.
const TGETATTR: u8 = 24;
const RREAD: u8 = 117;
const TWRITE: u8 = 118;
const TCLUNK: u8 = 120;
const TFSYNC: u8 = 50;

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

async fn open(root: &NodeRef, file: &str, how: How) -> Handle {
    root.open_at(&[name(file)], how, Want::default()).await.unwrap().handle
}

/// A tree with files that are called `large` and `other`.
fn tree() -> (Ram, Ram, Ram) {
    let ram = Ram::root();
    let large = ram.file("large", &"x".repeat(20 * PIECE));
    let other = ram.file("other", "another's");
    (ram, large, other)
}

/// Reads until the lane for bulk stands.
async fn warm(net: &Net, large: &Handle) {
    let warming = async {
        while net.bulk().open() == 0 {
            large.read(0, PIECE as u32).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        // Its session has been confirmed, too.
        let before = net.bulk().passed();
        while net.bulk().passed() == before || net.bulk().frames()[1].iter().all(|(code, _)| *code != RREAD) {
            large.read(0, PIECE as u32).await.unwrap();
        }
    };
    timeout(PATIENCE, warming).await.expect("a lane for bulk");
}

/// The frames of bulk among `frames`.
fn bulk(frames: &[(u8, usize)]) -> usize {
    frames.iter().filter(|(_, size)| *size > PIECE / 2).count()
}

fn count(frames: &[(u8, usize)], code: u8) -> usize {
    frames.iter().filter(|(seen, _)| *seen == code).count()
}

#[tokio::test(start_paused = true)]
async fn no_stat_has_bulk_before_it_however_long_that_takes() {
    let (ram, ..) = tree();
    let net = Net::new(ram);
    let (_client, root) = net.client().await;
    let large = open(&root, "large", How::RDWR).await;
    warm(&net, &large).await;
    let before = net.frames();
    net.bulk().hold(true);
    let piece = Bytes::from(vec![b'y'; PIECE]);
    let data = async {
        let reads = join_all((0..8).map(|at| large.read(at * PIECE as u64, PIECE as u32).into_future()));
        let writes = join_all((0..8).map(|at| large.write(at * PIECE as u64, piece.clone()).into_future()));
        tokio::join!(reads, writes)
    };
    let stats = async {
        for _ in 0..200 {
            root.walk(&[name("other")], Want::ATTR).await.unwrap().reached().unwrap();
        }
        let after = net.frames();
        net.bulk().hold(false);
        after
    };
    let ((reads, writes), after) = timeout(PATIENCE, async { tokio::join!(data, stats) }).await.unwrap();
    assert!(reads.into_iter().all(|read| read.unwrap().len() == PIECE));
    assert!(writes.into_iter().all(|written| written.unwrap().count as usize == PIECE));
    for way in 0..2 {
        let new = &after[way][before[way].len()..];
        assert!(new.len() >= 400, "{} frames", new.len());
        assert_eq!(bulk(new), 0, "of {} frames, way {way}", new.len());
    }
    let now = net.bulk().frames();
    assert!(bulk(&now[0]) >= 8 && bulk(&now[1]) >= 8, "the bulk went its own way");
}

#[tokio::test(start_paused = true)]
async fn what_must_come_after_bulk_waits_for_its_answer() {
    let (ram, large, _) = tree();
    let net = Net::new(ram);
    let (_client, root) = net.client().await;
    let file = open(&root, "large", How::RDWR).await;
    warm(&net, &file).await;
    let before = net.frames()[0].len();
    net.bulk().hold(true);
    let write = file.write(0, Bytes::from(vec![b'y'; PIECE]));
    let later = async {
        let sync = async {
            file.sync(false).await.unwrap();
            file.close().await.unwrap();
        };
        let held = async {
            sleep(Duration::from_secs(1)).await;
            let told = net.frames()[0][before..].to_vec();
            net.bulk().hold(false);
            told
        };
        tokio::join!(sync, held).1
    };
    let (written, told) = timeout(PATIENCE, async { tokio::join!(write, later) }).await.unwrap();
    assert_eq!(written.unwrap().count as usize, PIECE);
    assert_eq!((count(&told, TFSYNC), count(&told, TCLUNK)), (0, 0), "neither went before the write was answered");
    assert_eq!(&large.contents()[..PIECE], vec![b'y'; PIECE]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_never_meets_the_next_file_of_its_fid() {
    let (ram, _, other) = tree();
    let net = Net::new(ram);
    let (_client, root) = net.client().await;
    let file = open(&root, "large", How::RDWR).await;
    warm(&net, &file).await;
    net.bulk().hold(true);
    let given_up = file.write(0, Bytes::from(vec![b'y'; PIECE]));
    assert!(timeout(Duration::from_secs(1), given_up).await.is_err(), "it is on its way");
    drop(file);
    // Fids that are free are used again.
    let mut opened = Vec::new();
    for _ in 0..5 {
        opened.push(open(&root, "other", How::RDWR).await);
    }
    net.bulk().hold(false);
    sleep(Duration::from_secs(1)).await;
    assert!(other.contents() == "another's", "it went into another file");
    assert!(count(&net.bulk().frames()[0], TWRITE) >= 1, "the write came");
}

#[tokio::test(start_paused = true)]
async fn bulk_is_done_once_each_through_lanes_that_are_cut_again_and_again() {
    for seed in 1..6_u64 {
        let ram = Ram::root();
        let (log, place) = (ram.file("log", ""), ram.file("place", ""));
        let budget = move |number: usize| {
            let random = (number as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            if number == 0 { [u64::MAX; 2] } else { [400 + random % 600_000, 400 + random % 700_000] }
        };
        let net = Net::with_bulk(ram, SessionLimits::default(), |_| [u64::MAX; 2], budget);
        let (_client, root) = net.client().await;
        let (log_file, file) = (
            open(&root, "log", How { append: true, ..How::WRITE }).await,
            open(&root, "place", How { write: true, ..How::READ }).await,
        );
        let piece = |number: usize| Bytes::from(format!("{number:08}").repeat(PIECE / 8));
        let work = async {
            for number in 0..60 {
                if number == 20 {
                    net.bulk().cut_after([200_000, 200_000]);
                }
                let at = (number * PIECE) as u64;
                let (appended, written, _) = tokio::join!(
                    log_file.write(0, piece(number)),
                    file.write(at, piece(number)),
                    file.read(0, PIECE as u32)
                );
                assert_eq!((appended.unwrap().count as usize, written.unwrap().count as usize), (PIECE, PIECE));
                assert_eq!(file.read(at, PIECE as u32).await.unwrap(), piece(number), "{number}");
                if number % 7 == 0 {
                    file.sync(false).await.unwrap();
                }
                // The first lane breaks, too.
                if number % 11 == 0 {
                    net.cut();
                }
            }
        };
        timeout(PATIENCE, work).await.expect("it goes on");
        let expected: Vec<u8> = (0..60).flat_map(&piece).collect();
        assert!(log.contents() == expected, "each append is there once and in order, seed {seed}");
        assert!(place.contents() == expected, "each write is where it belongs, seed {seed}");
        assert!(net.bulk().dialled() > 5, "{} connections for bulk", net.bulk().dialled());
        assert_eq!(net.sessions().count(), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_second_connection_all_goes_on_the_first() {
    let (ram, ..) = tree();
    let net = Net::new(ram);
    net.bulk().down(true);
    let (_client, root) = net.client().await;
    let large = open(&root, "large", How::READ).await;
    for round in 0..10 {
        for at in 0..20 {
            assert_eq!(large.read(at * PIECE as u64, PIECE as u32).await.unwrap().len(), PIECE);
        }
        // It is asked for now and then, and not with each read.
        sleep(Duration::from_secs(10)).await;
        assert!(net.bulk().dialled() == 0, "{round}");
    }
    assert!(bulk(&net.frames()[1]) >= 200);
    net.bulk().down(false);
    sleep(Duration::from_secs(60)).await;
    warm(&net, &large).await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_not_used_has_no_connection_and_gets_one_again() {
    let (ram, ..) = tree();
    let net = Net::new(ram);
    let (client, root) = net.client().await;
    let large = open(&root, "large", How::READ).await;
    assert_eq!(net.bulk().dialled(), 0, "none before there is bulk");
    warm(&net, &large).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!((net.bulk().dialled(), net.bulk().open()), (1, 0));
    root.attr().await.unwrap();
    assert_eq!(net.bulk().open(), 0, "what is small needs none");
    warm(&net, &large).await;
    assert_eq!((net.bulk().dialled(), net.dialled()), (2, 1));
    drop((large, root, client));
    sleep(Duration::from_secs(1)).await;
    assert_eq!((net.sessions().count(), net.open(), net.bulk().open()), ((0, 0), 0, 0), "all ends together");
}

#[tokio::test(start_paused = true)]
async fn what_is_small_goes_before_bulk_that_waits_on_the_same_connection() {
    let (ram, large, _) = tree();
    let net = Net::new(ram);
    net.bulk().down(true);
    let (_client, root) = net.client().await;
    let file = open(&root, "large", How::RDWR).await;
    net.hold(true);
    let before = net.frames()[0].len();
    let piece = Bytes::from(vec![b'z'; PIECE]);
    let writes = join_all((0..20).map(|at| file.write(at * PIECE as u64, piece.clone()).into_future()));
    let (written, attr, ()) = tokio::join!(writes, async { root.attr().await }, async {
        sleep(Duration::from_secs(1)).await;
        net.hold(false);
        file.close().await.unwrap();
    });
    attr.unwrap();
    assert!(written.into_iter().all(|written| written.unwrap().count as usize == PIECE));
    assert!(large.contents().iter().all(|byte| *byte == b'z'), "the clunk came after all of them");
    let asked = net.frames()[0][before..].to_vec();
    let stat = asked.iter().position(|(code, _)| *code == TGETATTR).unwrap();
    assert!(bulk(&asked[..stat]) <= 1, "{} writes went before it", bulk(&asked[..stat]));
}
