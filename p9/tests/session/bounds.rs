//! Whose a session is, how long it lasts, and what it may cost: shown with a peer that speaks frame by frame.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p9::server::SessionLimits;
use p9::wire::{Data, NO_FID, NO_TAG, NO_UID, R, Steps, Str, T, VERSION_SLASHN};
use p9::{Errno, Who};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{sleep, timeout};

use crate::net::{Net, PATIENCE, who};
use crate::ram::Ram;

const ID: [u8; 16] = *b"a session's name";

/// A peer that says what the test says.
struct Peer(DuplexStream);

impl Peer {
    fn of(net: &Net, who: Arc<Who>) -> Self {
        Self(net.connect(who))
    }

    /// One that has asked for lane `lane` of the session [`ID`], and what the answer was.
    async fn greets(net: &Net, who: Arc<Who>, lane: u8, received: u64) -> (Self, Said) {
        let mut peer = Self::of(net, who);
        peer.says(NO_TAG, T::Version { msize: 1 << 20, version: Str(VERSION_SLASHN) }).await;
        assert!(peer.hears().await.unwrap().is("Version"));
        peer.says(NO_TAG, T::Session { id: ID, lane, linger: 60_000, received }).await;
        let said = peer.hears().await.unwrap();
        (peer, said)
    }

    async fn says(&mut self, tag: u16, message: T<'_>) {
        let mut frame = Vec::new();
        message.encode(tag, &mut frame);
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next message; none at the end.
    async fn hears(&mut self) -> Option<Said> {
        timeout(PATIENCE, async {
            let size = self.0.read_u32_le().await.ok()?;
            let mut frame = vec![0; size as usize - 4];
            self.0.read_exact(&mut frame).await.ok()?;
            Some(Said(frame))
        })
        .await
        .expect("something, or the end")
    }

    async fn attaches(&mut self, fid: u32) {
        let attach = T::Attach { fid, afid: NO_FID, uname: Str(b"me"), aname: Str(b"/"), n_uname: Some(NO_UID) };
        self.says(1, attach).await;
        assert!(self.hears().await.unwrap().is("Attach"));
    }

    /// Opens `name` of the root, which is fid 0, as `fid`.
    async fn opens(&mut self, fid: u32, name: &str, flags: u32) {
        let steps = Steps::encode(&[p9::wire::Step::Into(p9::Name::new(name.as_bytes()).unwrap())]);
        self.says(1, T::Walk { fid: 0, newfid: fid, steps: Steps::of(&steps, 1) }).await;
        self.says(2, T::Lopen { fid, flags }).await;
        assert!(self.hears().await.unwrap().is("Walk"));
        assert!(self.hears().await.unwrap().is("Lopen"));
    }
}

/// A message that was heard: type, tag, fields.
struct Said(Vec<u8>);

impl Said {
    fn message(&self) -> R<'_> {
        R::decode(self.0[0], &self.0[3..]).unwrap().unwrap()
    }

    fn is(&self, what: &str) -> bool {
        format!("{:?}", self.message()).starts_with(what)
    }

    fn errno(&self) -> Option<Errno> {
        match self.message() {
            R::Lerror { ecode } => Some(Errno::from_code(ecode as i32)),
            _ => None,
        }
    }

    fn state(&self) -> (u8, u64) {
        match self.message() {
            R::Session { state, received, .. } => (state, received),
            other => panic!("{other:?}"),
        }
    }
}

/// A tree with a large file, and how many hold the small one.
fn tree() -> (Ram, impl Fn() -> usize) {
    let ram = Ram::root();
    ram.file("large", &"x".repeat(1 << 19));
    let small = ram.file("small", "");
    ram.pipe("pipe");
    let holders = small.holders();
    (ram, holders)
}

fn me() -> Arc<Who> {
    who("SHA256:me")
}

#[tokio::test(start_paused = true)]
async fn a_session_is_given_back_to_its_own_key_alone() {
    let net = Net::new(tree().0);
    let (mut peer, said) = Peer::greets(&net, me(), 0, 0).await;
    assert_eq!(said.state(), (0, 0));
    peer.attaches(0).await;
    let (_, said) = Peer::greets(&net, who("SHA256:other"), 0, 1).await;
    assert_eq!(said.errno(), Some(Errno::EPERM));
    let only = p9::Rights::Only(Arc::new([]));
    let (_, said) = Peer::greets(&net, Arc::new(Who { rights: only, ..(*me()).clone() }), 0, 1).await;
    assert_eq!(said.errno(), Some(Errno::EPERM), "with other rights it is another peer");
    // The true one is not disturbed by any of that.
    peer.says(5, T::Getattr { fid: 0, mask: !0 }).await;
    assert!(peer.hears().await.unwrap().is("Getattr"));
    drop(peer);
    let (mut peer, said) = Peer::greets(&net, me(), 0, 2).await;
    assert_eq!(said.state(), (1, 2));
    peer.says(5, T::Getattr { fid: 0, mask: !0 }).await;
    assert!(peer.hears().await.unwrap().is("Getattr"));
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_takes_the_place_of_the_one_before() {
    let net = Net::new(tree().0);
    let (mut first, _) = Peer::greets(&net, me(), 0, 0).await;
    first.attaches(0).await;
    // It has not seen the answer to its attach.
    let (mut second, said) = Peer::greets(&net, me(), 0, 0).await;
    assert_eq!(said.state(), (1, 1));
    assert!(second.hears().await.unwrap().is("Attach"), "which is sent again");
    assert!(first.hears().await.is_none(), "the first was closed");
    second.says(1, T::Getattr { fid: 0, mask: !0 }).await;
    assert!(second.hears().await.unwrap().is("Getattr"));
}

#[tokio::test(start_paused = true)]
async fn lanes_share_fids_and_each_has_its_own_numbers() {
    let net = Net::new(tree().0);
    let (_, said) = Peer::greets(&net, me(), 1, 0).await;
    assert_eq!(said.errno(), Some(Errno::ENOENT), "no lane comes before the first");
    let (mut zero, _) = Peer::greets(&net, me(), 0, 0).await;
    zero.attaches(0).await;
    let (mut one, said) = Peer::greets(&net, me(), 1, 0).await;
    assert_eq!(said.state(), (0, 0));
    zero.opens(7, "large", 0).await;
    // The same tag as on the other lane.
    zero.opens(8, "pipe", 2).await;
    zero.says(3, T::Read { fid: 8, offset: 0, count: 10 }).await;
    one.says(3, T::Read { fid: 7, offset: 0, count: 10 }).await;
    assert!(one.hears().await.unwrap().is("Read"));
    drop(one);
    let (mut one, said) = Peer::greets(&net, me(), 1, 1).await;
    assert_eq!(said.state(), (1, 1));
    one.says(4, T::Write { fid: 8, offset: 0, data: Data(b"ping") }).await;
    assert!(one.hears().await.unwrap().is("Write"));
    assert!(zero.hears().await.unwrap().is("Read"));
    let (_, said) = Peer::greets(&net, me(), 4, 0).await;
    assert_eq!(said.errno(), Some(Errno::EINVAL), "there are no more lanes than four");
    assert_eq!(net.sessions().count(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn fids_are_free_once_nobody_has_come_back_in_time() {
    let (ram, holders) = tree();
    let limits = SessionLimits { linger: Duration::from_secs(20), ..SessionLimits::default() };
    let net = Net::with(ram, limits, |_| [u64::MAX; 2]);
    let (mut peer, said) = Peer::greets(&net, me(), 0, 0).await;
    let R::Session { linger: 20_000, .. } = said.message() else { panic!("{:?}", said.message()) };
    peer.attaches(0).await;
    peer.opens(1, "small", 0).await;
    drop(peer);
    sleep(Duration::from_secs(19)).await;
    assert_eq!((net.sessions().count(), holders() > 1), ((1, 1), true));
    sleep(Duration::from_secs(2)).await;
    assert_eq!((net.sessions().count(), holders()), ((0, 0), 1));
    let (_, said) = Peer::greets(&net, me(), 0, 3).await;
    assert_eq!(said.state(), (0, 0), "which is told");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_denied_loses_its_sessions_and_nobody_else_does() {
    let (ram, holders) = tree();
    let net = Net::new(ram);
    let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
    peer.attaches(0).await;
    peer.opens(1, "small", 0).await;
    net.sessions().end(|who| &*who.key != "SHA256:me");
    assert_eq!(net.sessions().count(), (1, 0));
    net.sessions().end(|who| &*who.key == "SHA256:me");
    assert!(peer.hears().await.is_none(), "its connection ended, too");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((net.sessions().count(), holders()), ((0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_a_peer_that_acknowledges_nothing_is_bounded() {
    let net = Net::new(tree().0);
    let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
    peer.attaches(0).await;
    peer.opens(1, "large", 0).await;
    let count = 1 << 19;
    let mut heard = 3;
    for tag in 0..100 {
        peer.says(tag, T::Read { fid: 1, offset: 0, count }).await;
    }
    while let Ok(said) = timeout(Duration::from_secs(30), peer.hears()).await {
        heard += u64::from(!said.unwrap().is("Ack"));
    }
    assert_eq!(heard, 3 + 30, "15 MiB are sent, and no more");
    assert!(net.sessions().kept() <= (16 << 20) + (1 << 20), "{}", net.sessions().kept());
    // What is small has a place kept for it.
    peer.says(100, T::Getattr { fid: 0, mask: !0 }).await;
    while !peer.hears().await.unwrap().is("Getattr") {}
    heard += 1;
    // All that was asked is answered once room is made, although the acknowledgement came behind requests.
    peer.says(NO_TAG, T::Ack { received: heard }).await;
    let mut unread = 100 - 30;
    while unread > 0 {
        let said = peer.hears().await.unwrap();
        if !said.is("Ack") {
            (unread, heard) = (unread - 1, heard + 1);
            peer.says(NO_TAG, T::Ack { received: heard }).await;
        }
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(net.sessions().kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn sessions_without_a_connection_make_room_for_those_that_have_one() {
    let limits = SessionLimits { kept: 1 << 20, ..SessionLimits::default() };
    let net = Net::with(tree().0, limits, |_| [u64::MAX; 2]);
    let (mut gone, _) = Peer::greets(&net, me(), 0, 0).await;
    gone.attaches(0).await;
    gone.opens(1, "large", 0).await;
    for tag in 0..4 {
        gone.says(tag, T::Read { fid: 1, offset: 0, count: 1 << 19 }).await;
    }
    for _ in 0..2 {
        while !gone.hears().await.unwrap().is("Read") {}
    }
    drop(gone);
    sleep(Duration::from_secs(1)).await;
    assert!(net.sessions().kept() >= 1 << 20);
    let (client, root) = net.client().await;
    let file = p9::Name::new(b"large").unwrap();
    for _ in 0..5 {
        let want = p9::Want { data: 1 << 19, ..p9::Want::default() };
        let opened = root.open_at(&[file], p9::How::READ, want).await.unwrap();
        assert_eq!(opened.first.map(|data: Bytes| data.len()), Some(1 << 19));
    }
    assert_eq!(net.sessions().count(), (1, 0));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn numbers_that_cannot_be_meant_end_the_session() {
    for lie in [9, u64::MAX - 1] {
        let net = Net::new(tree().0);
        let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
        peer.attaches(0).await;
        peer.says(NO_TAG, T::Ack { received: lie }).await;
        assert_eq!(peer.hears().await.unwrap().errno(), Some(Errno::EPROTO));
        assert!(peer.hears().await.is_none());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(net.sessions().count(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_that_cannot_be_meant_ends_the_session_when_it_is_resumed_too() {
    let net = Net::new(tree().0);
    let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
    peer.attaches(0).await;
    let (mut peer, said) = Peer::greets(&net, me(), 0, 9).await;
    assert_eq!(said.errno(), Some(Errno::EPROTO));
    assert!(peer.hears().await.is_none());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(net.sessions().count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_given_up_and_comes_late_changes_nothing() {
    let net = Net::new(tree().0);
    let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
    peer.attaches(0).await;
    peer.says(NO_TAG, T::Ack { received: 1 }).await;
    // Asked for before anything had come, and overtaken by the one that carries the session.
    let mut late = Peer::of(&net, me());
    late.says(NO_TAG, T::Version { msize: 1 << 20, version: Str(VERSION_SLASHN) }).await;
    late.says(NO_TAG, T::Session { id: ID, lane: 0, linger: 60_000, received: 0 }).await;
    assert!(late.hears().await.unwrap().is("Version"));
    assert!(late.hears().await.is_none());
    peer.says(2, T::Getattr { fid: 0, mask: 0 }).await;
    while !peer.hears().await.unwrap().is("Getattr") {}
    assert_eq!(net.sessions().count(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_its_client_has_ended_is_not_begun_again() {
    // By its farewell, and by what it may not say.
    for last in [u64::MAX, 9] {
        let net = Net::new(tree().0);
        let (mut peer, _) = Peer::greets(&net, me(), 0, 0).await;
        peer.attaches(0).await;
        peer.says(NO_TAG, T::Ack { received: last }).await;
        while peer.hears().await.is_some() {}
        // Sent before, on a connection that was dialled when the other seemed to be lost.
        for received in [0, 1] {
            let (mut late, said) = Peer::greets(&net, me(), 0, received).await;
            assert_eq!(said.errno(), Some(Errno::ENOENT));
            late.attaches(0).await;
        }
        assert_eq!(net.sessions().count(), (0, 0), "none lingers");
        let mut other = Peer::of(&net, me());
        other.says(NO_TAG, T::Version { msize: 1 << 20, version: Str(VERSION_SLASHN) }).await;
        other.says(NO_TAG, T::Session { id: [7; 16], lane: 0, linger: 60_000, received: 0 }).await;
        assert!(other.hears().await.unwrap().is("Version"));
        assert_eq!(other.hears().await.unwrap().state(), (0, 0), "others begin");
    }
}

#[tokio::test(start_paused = true)]
async fn each_run_of_a_server_has_a_number_of_its_own() {
    let boot = async |net: &Net, lane| match Peer::greets(net, me(), lane, 0).await.1.message() {
        R::Session { boot, .. } => boot,
        other => panic!("{other:?}"),
    };
    let (one, other) = (Net::new(tree().0), Net::new(tree().0));
    let before = boot(&one, 0).await;
    assert_eq!(before, boot(&one, 1).await);
    assert_ne!(before, boot(&other, 0).await);
}

#[tokio::test(start_paused = true)]
async fn one_key_keeps_so_many_sessions_without_a_connection_and_the_oldest_goes() {
    let limits = SessionLimits { lingering: 2, ..SessionLimits::default() };
    let net = Net::with(tree().0, limits, |_| [u64::MAX; 2]);
    for number in 0..5_u8 {
        let mut peer = Peer::of(&net, me());
        peer.says(NO_TAG, T::Version { msize: 1 << 20, version: Str(VERSION_SLASHN) }).await;
        peer.says(NO_TAG, T::Session { id: [number; 16], lane: 0, linger: 60_000, received: 0 }).await;
        peer.hears().await.unwrap();
        assert_eq!(peer.hears().await.unwrap().state(), (0, 0));
        drop(peer);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(net.sessions().count(), (2, 2));
}
