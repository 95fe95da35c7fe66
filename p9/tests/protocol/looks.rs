//! How often a file is looked at for a walk and the getattr that came along with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use p9::server::Limits;
use p9::{Attr, Errno, FileKind, Handle, How, Name, Node, Qid, Reply, Walk, Want, synth};

use crate::peer::{Peer, encode};

/// A directory in which every name is a file as long as it was looked at often.
#[derive(Default)]
struct Dir(Arc<AtomicU64>);

struct File(Arc<AtomicU64>);

fn look(looks: &AtomicU64) -> Attr {
    let size = looks.fetch_add(1, Ordering::SeqCst) + 1;
    Attr { size, ..Attr::synthetic(Qid { kind: FileKind::File, version: 1, path: 2 }, 0o444) }
}

impl Node for Dir {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::Dir, version: 0, path: 1 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid(), 0o555))
    }

    fn walk<'a>(&'a self, _names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        // Whoever walks looks at what is there, as on a disk.
        let attr = look(&self.0);
        Reply::ok(Walk::one(Arc::new(File(self.0.clone())), want.attr.then_some(attr)))
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Errno::EACCES.into()
    }
}

impl Node for File {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::File, version: 1, path: 2 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(look(&self.0))
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Errno::EACCES.into()
    }
}

/// The two, by a peer that sends all of `messages` at once.
async fn peer(messages: &[&str]) -> (Peer, Arc<AtomicU64>) {
    let dir = Dir::default();
    let looks = dir.0.clone();
    let mut peer = Peer::attached(synth::tree(Arc::new(dir)), Limits::default()).await;
    let all: Vec<u8> = messages.iter().flat_map(|message| encode(message)).collect();
    peer.send(&all).await;
    (peer, looks)
}

#[tokio::test(start_paused = true)]
async fn a_walk_and_the_getattr_that_came_along_are_one_look() {
    let walk = "1 Twalk fid=0 newfid=1 wnames=f";
    let (mut peer, looks) = peer(&[walk, "2 Tgetattr fid=1 request_mask=0x7ff", "3 Tclunk fid=1"]).await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rgetattr size=1").await;
    peer.hears("3 Rclunk").await;
    assert_eq!(looks.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_getattr_that_came_later_is_another_look() {
    let (mut peer, _) = peer(&["1 Twalk fid=0 newfid=1 wnames=f", "2 Tgetattr fid=1 request_mask=0x7ff"]).await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rgetattr size=1").await;
    peer.say("3 Tgetattr fid=1 request_mask=0x7ff").await;
    peer.hears("3 Rgetattr size=2").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_walk_alone_met_is_not_kept_for_later() {
    let (mut peer, looks) = peer(&["1 Twalk fid=0 newfid=1 wnames=f", "2 Twalk fid=0 newfid=2 wnames=f"]).await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rwalk").await;
    assert_eq!(looks.load(Ordering::SeqCst), 2);
    peer.say("3 Tgetattr fid=1 request_mask=0x7ff").await;
    peer.hears("3 Rgetattr size=3").await;
}
