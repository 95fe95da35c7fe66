//! 9P2000, where a conversation that is written down does not say enough: directories in parts, files that are open
//! for one client alone, clients that vanish.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use p9::TreeRef;
use p9::server::Limits;

use crate::peer::{PATIENCE, Peer};
use crate::ram::Ram;
use crate::stat;

/// One that has agreed on 9P2000 and attached the root as fid 0.
async fn attached(tree: &TreeRef) -> Peer {
    let mut peer = Peer::of(tree.clone(), Limits::default());
    peer.say("65535 Tversion msize=8192 version=9P2000").await;
    peer.hears("65535 Rversion version=9P2000").await;
    peer.say("1 Tattach fid=0 afid=~ uname=glenda aname=").await;
    peer.hears("1 Rattach qid=d1").await;
    peer
}

/// Opens the directory called `name` as `fid`.
async fn opens(peer: &mut Peer, fid: u32, name: &str) {
    peer.say(&format!("1 Twalk fid=0 newfid={fid} wnames={name}")).await;
    peer.hears("1 Rwalk").await;
    peer.say(&format!("1 Topen fid={fid} mode=0")).await;
    peer.hears("1 Ropen").await;
}

/// What a read of `fid` from `offset` gives: whole stats.
async fn stats(peer: &mut Peer, fid: u32, offset: usize, count: usize) -> (Vec<String>, usize) {
    peer.say(&format!("1 Tread fid={fid} offset={offset} count={count}")).await;
    let frame = peer.hear().await.unwrap();
    assert_eq!(frame[4], 117, "{:?}", String::from_utf8_lossy(&frame));
    let data = &frame[11..];
    assert!(data.len() <= count);
    let (mut rest, mut names) = (data, Vec::new());
    while !rest.is_empty() {
        let (one, after) = stat::split(rest).expect("whole entries");
        assert!(stat::is(one, ""), "an entry that is a stat");
        names.push(stat::name(one));
        rest = after;
    }
    (names, data.len())
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_read_from_the_start_or_from_where_the_last_read_ended() {
    let ram = Ram::root();
    let dir = ram.dir("dir");
    let all: BTreeSet<String> = (0..200).map(|i| format!("{}{i}", "x".repeat(i % 50))).collect();
    all.iter().for_each(|name| drop(dir.file(name, "")));
    dir.link("link", "../dir");
    dir.link("lost", "nowhere");
    let mut peer = attached(&(Arc::new(ram) as TreeRef)).await;
    opens(&mut peer, 1, "dir").await;
    for count in [150, 1000, 8000, 1_000_000] {
        let (mut offset, mut seen) = (0, Vec::new());
        loop {
            let (names, size) = stats(&mut peer, 1, offset, count.min(8000)).await;
            if names.is_empty() {
                break;
            }
            seen.extend(names);
            offset += size;
        }
        assert_eq!(seen.len(), 202, "in parts of {count}");
        let seen: BTreeSet<String> = seen.into_iter().filter(|name| !name.starts_with('l')).collect();
        assert_eq!(seen, all);
    }
    // Anywhere else is an error, and says nothing about where one may go on.
    let (first, size) = stats(&mut peer, 1, 0, 500).await;
    for wrong in [1, size - 1, size + 1, 1 << 40] {
        peer.say(&format!("1 Tread fid=1 offset={wrong} count=500")).await;
        peer.hears("1 Rerror ename=bad\\soffset\\sin\\sdirectory\\sread").await;
    }
    let (second, _) = stats(&mut peer, 1, size, 500).await;
    assert!(!second.is_empty() && second.iter().all(|name| !first.contains(name)));
    peer.hangs_up().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_listing_says_of_a_link_is_what_a_stat_says() {
    let ram = Ram::root();
    ram.dir("dir").link("file", "../motd");
    ram.file("motd", "hello\n");
    let mut peer = attached(&(Arc::new(ram) as TreeRef)).await;
    opens(&mut peer, 1, "dir").await;
    peer.say("1 Tread fid=1 offset=0 count=1000").await;
    let listed = peer.hear().await.unwrap()[11..].to_vec();
    peer.say("1 Twalk fid=0 newfid=2 wnames=dir,file").await;
    peer.hears("1 Rwalk").await;
    peer.say("1 Tstat fid=2").await;
    assert_eq!(peer.hear().await.unwrap()[9..], listed);
    assert!(stat::is(&listed, "name:file;length:6;mode:0o644"));
    peer.hangs_up().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_for_exclusive_use_is_open_for_one_client_until_that_has_gone() {
    let tree: TreeRef = Arc::new(Ram::root());
    let (mut one, mut other) = (attached(&tree).await, attached(&tree).await);
    one.say("1 Twalk fid=0 newfid=1 wnames=").await;
    one.hears("1 Rwalk").await;
    one.say("1 Tcreate fid=1 name=lock perm=0o4000000666 mode=2").await;
    one.hears("1 Rcreate").await;
    other.say("1 Twalk fid=0 newfid=1 wnames=lock").await;
    other.hears("1 Rwalk").await;
    other.say("1 Topen fid=1 mode=2").await;
    other.hears("1 Rerror ename=exclusive\\suse\\sfile\\salready\\sopen").await;
    one.hangs_up().await.unwrap();
    other.say("1 Topen fid=1 mode=2").await;
    other.hears("1 Ropen").await;
    other.hangs_up().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_when_closed_goes_with_its_client() {
    let ram = Ram::root();
    let file = ram.file("temporary", "");
    let holders = file.holders();
    let mut peer = attached(&(Arc::new(ram.clone()) as TreeRef)).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=temporary").await;
    peer.hears("1 Rwalk").await;
    peer.say("1 Topen fid=1 mode=0x40").await;
    peer.hears("1 Ropen").await;
    drop(file);
    peer.hangs_up().await.unwrap();
    let gone = async {
        while holders() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the file is removed");
}

#[tokio::test(start_paused = true)]
async fn a_stat_that_lies_about_its_size_ends_the_connection() {
    let mut peer = attached(&(Arc::new(Ram::root()) as TreeRef)).await;
    let mut frame = crate::peer::encode("1 Twstat fid=0 stat=name:x");
    frame[13..15].copy_from_slice(&1000_u16.to_le_bytes());
    peer.send(&frame).await;
    let (said, _) = peer.refusal().await;
    assert_eq!(said.map(|frame| frame[4]), Some(107), "in 9P2000's words");
}
