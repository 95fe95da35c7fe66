//! Conversations with the server, one message a line, in `../transcripts/*.txt`.
//!
//! `->` is what the peer sends (neighbouring lines in one go), `<-` the reply that must come next, `--` that nothing
//! comes for now, `==` that the connection is lost and another made; `#` is a comment. Each conversation has a tree of
//! its own, see [`served`].

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use p9::server::Limits;
use p9::wire::{R, T};

use crate::peer::{self, Peer};
use crate::ram::Ram;

/// What a conversation is about: one in 9P2000 has links, too.
fn served(conversation: &str) -> Ram {
    let root = Ram::root(); // 1
    root.file("motd", "hello\n"); // 2
    let sub = root.dir("sub"); // 3
    sub.file("inner", "deep down\n"); // 4
    sub.dir("empty"); // 5
    root.pipe("pipe"); // 6
    root.bad_close("quota"); // 7
    if conversation.contains("lease") {
        let shared = root.file("shared", "text\n"); // 8
        root.other("other", &shared); // 9
        root.link("link", "shared"); // 10
    }
    if conversation.contains("9p2000") {
        root.link("short", "sub/up"); // 8
        sub.link("up", "../sub/./inner"); // 9
        sub.link("back", ".."); // 10
        sub.link("out", "../../motd"); // 11
        sub.link("over", "/sub/empty"); // 12
    }
    root
}

async fn hold(conversation: &str) {
    let text = fs::read_to_string(folder().join(conversation)).unwrap();
    let mut peer = Peer::of(Arc::new(served(conversation)), Limits::default());
    let mut unsent = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (mark, message) = line.split_at(2);
        if mark != "->" && !unsent.is_empty() {
            peer.send(&std::mem::take(&mut unsent)).await;
        }
        match mark {
            "->" => unsent.extend(peer::encode(message)),
            "<-" => peer.hears(message).await,
            "--" => peer.hears_nothing().await,
            "==" => peer = peer.comes_again().await,
            _ => panic!("no such line: {line}"),
        }
    }
    peer.hears_nothing().await;
    peer.hangs_up().await.expect("a connection that its peer ended");
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

macro_rules! conversations {
    ($($name:ident)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                hold(concat!(stringify!($name), ".txt")).await;
            }
        )*

        #[test]
        fn every_conversation_is_held() {
            let named: BTreeSet<String> = [$(concat!(stringify!($name), ".txt")),*].map(String::from).into();
            let found: BTreeSet<String> =
                fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            assert_eq!(named, found);
        }
    };
}

conversations! {
    a_9p2000_client_is_answered_in_its_own_words
    a_9p2000_client_makes_changes_and_removes_files
    a_9p2000_walk_follows_links
    a_client_may_send_what_follows_a_walk_without_waiting
    a_dialect_that_is_not_known_is_spoken_as_its_base
    a_directory_is_read_in_parts
    a_directory_is_read_with_attributes
    a_file_is_made_written_and_read
    a_file_is_moved_and_removed_by_its_fid
    a_flush_ends_what_waits
    a_message_that_is_not_known_is_answered
    a_rename_replaces_nothing_or_changes_places
    a_session_outlives_its_connection
    a_session_that_is_not_known_is_begun
    a_small_file_is_fetched_by_one_message
    a_version_begins_everything_anew
    a_walk_goes_by_names_and_up
    an_append_says_where_it_went
    attaching_at_a_path_gives_that_file
    attributes_are_changed
    bytes_are_copied_at_the_server
    devices_fifos_and_sockets_are_made
    extended_attributes_are_read_and_set
    leases_are_granted_broken_and_given_back
    links_have_targets_and_names
    locks_exclude_each_other
    names_are_made_moved_and_removed
    nobody_authenticates_in_9p
    room_is_made_and_holes_are_found
    parts_of_a_file_are_known_by_their_hashes
    what_closing_met_is_told
    what_closing_will_meet_is_told
}

/// A message exists only if a conversation shows it.
#[test]
fn every_message_is_in_a_conversation() {
    let spoken: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .flat_map(|file| {
            fs::read_to_string(file.unwrap().path()).unwrap().lines().map(String::from).collect::<Vec<_>>()
        })
        .filter_map(|line| line.split_whitespace().nth(2).map(String::from))
        .collect();
    let known: BTreeSet<u8> = T::CODES.iter().chain(R::CODES).copied().collect();
    let named: BTreeSet<u8> = peer::names().map(|(code, _)| code).collect();
    assert!(known.is_subset(&named), "not in the test's table: {:?}", known.difference(&named));
    let missing: Vec<_> =
        peer::names().filter(|(code, name)| known.contains(code) && !spoken.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
