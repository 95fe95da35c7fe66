//! The other side of a conversation, one message a line, for tests of the server.
//!
//! A line is `TAG NAME FIELD=VALUE ...`. The table below says what the fields of each message are, written down from
//! the protocol's description and not from the crate's own table, so that each checks the other. An expected reply may
//! leave fields out that do not matter.

use std::sync::Arc;
use std::time::Duration;

use p9::server::{self, Limits, SessionLimits, Sessions};
use p9::{TreeRef, Who};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::stat;

/// Each message: its type byte, its name, its fields and their types. `1` `2` `4` `8`: a number of so many bytes; `s`:
/// a string; `i`: 16 bytes; `n`: names; `d`: data; `q`: a qid; `Q`: qids; `e`: directory entries; `E`: the same with
/// attributes; `S`: a stat. 9P2000 has no `n_uname`: a line that has none means that.
const TABLE: &[(u8, &str, &str)] = &[
    (7, "Rlerror", "ecode:4"),
    (8, "Tstatfs", "fid:4"),
    (9, "Rstatfs", "type:4 bsize:4 blocks:8 bfree:8 bavail:8 files:8 ffree:8 fsid:8 namelen:4"),
    (12, "Tlopen", "fid:4 flags:4"),
    (13, "Rlopen", "qid:q iounit:4"),
    (14, "Tlcreate", "fid:4 name:s flags:4 mode:4 gid:4"),
    (15, "Rlcreate", "qid:q iounit:4"),
    (16, "Tsymlink", "fid:4 name:s symtgt:s gid:4"),
    (17, "Rsymlink", "qid:q"),
    (18, "Tmknod", "dfid:4 name:s mode:4 major:4 minor:4 gid:4"),
    (19, "Rmknod", "qid:q"),
    (20, "Trename", "fid:4 dfid:4 name:s"),
    (21, "Rrename", ""),
    (22, "Treadlink", "fid:4"),
    (23, "Rreadlink", "target:s"),
    (24, "Tgetattr", "fid:4 request_mask:8"),
    (
        25,
        "Rgetattr",
        "valid:8 qid:q mode:4 uid:4 gid:4 nlink:8 rdev:8 size:8 blksize:8 blocks:8 atime_sec:8 atime_nsec:8 mtime_sec:8 \
         mtime_nsec:8 ctime_sec:8 ctime_nsec:8 btime_sec:8 btime_nsec:8 gen:8 data_version:8",
    ),
    (26, "Tsetattr", "fid:4 valid:4 mode:4 uid:4 gid:4 size:8 atime_sec:8 atime_nsec:8 mtime_sec:8 mtime_nsec:8"),
    (27, "Rsetattr", ""),
    (30, "Txattrwalk", "fid:4 newfid:4 name:s"),
    (31, "Rxattrwalk", "size:8"),
    (32, "Txattrcreate", "fid:4 name:s attr_size:8 flags:4"),
    (33, "Rxattrcreate", ""),
    (40, "Treaddir", "fid:4 offset:8 count:4"),
    (41, "Rreaddir", "entries:e"),
    (50, "Tfsync", "fid:4 datasync:4"),
    (51, "Rfsync", ""),
    (52, "Tlock", "fid:4 type:1 flags:4 start:8 length:8 proc_id:4 client_id:s"),
    (53, "Rlock", "status:1"),
    (54, "Tgetlock", "fid:4 type:1 start:8 length:8 proc_id:4 client_id:s"),
    (55, "Rgetlock", "type:1 start:8 length:8 proc_id:4 client_id:s"),
    (70, "Tlink", "dfid:4 fid:4 name:s"),
    (71, "Rlink", ""),
    (72, "Tmkdir", "dfid:4 name:s mode:4 gid:4"),
    (73, "Rmkdir", "qid:q"),
    (74, "Trenameat", "olddirfid:4 oldname:s newdirfid:4 newname:s"),
    (75, "Rrenameat", ""),
    (76, "Tunlinkat", "dirfid:4 name:s flags:4"),
    (77, "Runlinkat", ""),
    (100, "Tversion", "msize:4 version:s"),
    (101, "Rversion", "msize:4 version:s"),
    (102, "Tauth", "afid:4 uname:s aname:s n_uname:4"),
    (104, "Tattach", "fid:4 afid:4 uname:s aname:s n_uname:4"),
    (105, "Rattach", "qid:q"),
    (107, "Rerror", "ename:s"),
    (108, "Tflush", "oldtag:2"),
    (109, "Rflush", ""),
    (110, "Twalk", "fid:4 newfid:4 wnames:n"),
    (111, "Rwalk", "wqids:Q"),
    (112, "Topen", "fid:4 mode:1"),
    (113, "Ropen", "qid:q iounit:4"),
    (114, "Tcreate", "fid:4 name:s perm:4 mode:1"),
    (115, "Rcreate", "qid:q iounit:4"),
    (116, "Tread", "fid:4 offset:8 count:4"),
    (117, "Rread", "data:d"),
    (118, "Twrite", "fid:4 offset:8 data:d"),
    (119, "Rwrite", "count:4"),
    (120, "Tclunk", "fid:4"),
    (121, "Rclunk", ""),
    (122, "Tremove", "fid:4"),
    (123, "Rremove", ""),
    (124, "Tstat", "fid:4"),
    (125, "Rstat", "stat:S"),
    (126, "Twstat", "fid:4 stat:S"),
    (127, "Rwstat", ""),
    (200, "Tsession", "id:i lane:1 linger:4 received:8"),
    (201, "Rsession", "boot:8 state:1 linger:4 lease:4 received:8"),
    (202, "Tack", "received:8"),
    (203, "Rack", "received:8"),
    (204, "Treaddirplus", "fid:4 offset:8 count:4"),
    (205, "Rreaddirplus", "entries:E"),
    (206, "Trename2", "olddirfid:4 oldname:s newdirfid:4 newname:s flags:4"),
    (207, "Rrename2", ""),
    (208, "Tallocate", "fid:4 mode:4 offset:8 length:8"),
    (209, "Rallocate", ""),
    (210, "Tseek", "fid:4 offset:8 whence:4"),
    (211, "Rseek", "offset:8"),
    (212, "Tcopy", "fid:4 offset:8 tofid:4 tooffset:8 length:8"),
    (213, "Rcopy", "count:8"),
    (214, "Tappend", "fid:4 data:d"),
    (215, "Rappend", "count:4 offset:8"),
    (216, "Tlease", "fid:4 kind:1"),
    (217, "Rlease", "kind:1"),
    (219, "Rbreak", "fid:4 keep:1"),
    (220, "Tfetch", "fid:4 name:s count:4"),
    (221, "Rfetch", "qid:q data:d"),
    (222, "Tdigest", "fid:4 offset:8 count:8"),
    (223, "Rdigest", "count:8 hash:h"),
    (250, "Tunknown", "fid:4"),
];

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A peer of a server.
pub(crate) struct Peer {
    stream: DuplexStream,
    /// What the server returned.
    pub(crate) served: JoinHandle<Result<(), server::Error>>,
    /// For another connection: the sessions, and what is served.
    server: (Sessions, TreeRef, Limits),
}

impl Peer {
    /// A peer of a server of `tree`, over a stream in memory.
    pub(crate) fn of(tree: TreeRef, limits: Limits) -> Self {
        Self::at((Sessions::new(SessionLimits::default()), tree, limits))
    }

    fn at(server: (Sessions, TreeRef, Limits)) -> Self {
        let (stream, far) = tokio::io::duplex(64 << 10);
        let (sessions, tree, limits) = server.clone();
        let serving = async move { sessions.serve(far, tree, Arc::new(Who::owner()), limits).await };
        Self { stream, served: tokio::spawn(serving), server }
    }

    /// The connection is lost, and another made to the same server.
    pub(crate) async fn comes_again(self) -> Self {
        let server = self.server.clone();
        self.hangs_up().await.expect("a connection that its peer ended");
        Self::at(server)
    }

    /// One that has agreed on our dialect and attached the root as fid 0.
    pub(crate) async fn attached(tree: TreeRef, limits: Limits) -> Self {
        let mut peer = Self::of(tree, limits);
        peer.say("65535 Tversion msize=8192 version=9P2000.L.slashn").await;
        peer.say("0 Tattach fid=0 afid=~ uname=test aname=/ n_uname=~").await;
        peer.hears("65535 Rversion version=9P2000.L.slashn").await;
        peer.hears("0 Rattach qid=d1").await;
        peer
    }

    /// Sends the message that `line` says.
    pub(crate) async fn say(&mut self, line: &str) {
        self.send(&encode(line)).await;
    }

    /// Opens the file called `name` in the root as `fid`.
    pub(crate) async fn opens(&mut self, fid: u32, name: &str, flags: u32) {
        self.say(&format!("1 Twalk fid=0 newfid={fid} wnames={name}")).await;
        self.say(&format!("2 Tlopen fid={fid} flags={flags}")).await;
        self.hears("1 Rwalk").await;
        self.hears("2 Rlopen").await;
    }

    /// Sends bytes to a server that may end the connection meanwhile, and waits for that end.
    pub(crate) async fn sends_and_hangs_up(mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.hangs_up().await;
    }

    /// Sends bytes, whatever they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the server reads").unwrap();
    }

    /// The next reply, or `None` at the end of the stream.
    pub(crate) async fn hear(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4];
        self.stream.read_exact(&mut frame).await.ok()?;
        let size = u32::from_le_bytes(frame[..].try_into().unwrap()) as usize;
        frame.resize(size, 0);
        self.stream.read_exact(&mut frame[4..]).await.expect("a whole frame");
        Some(frame)
    }

    /// Waits for the next reply, which must be what `line` says.
    pub(crate) async fn hears(&mut self, line: &str) {
        let frame = tokio::time::timeout(PATIENCE, self.hear()).await;
        let frame = frame.unwrap_or_else(|_| panic!("no reply, instead of: {line}"));
        let frame = frame.unwrap_or_else(|| panic!("the stream ended, instead of: {line}"));
        if let Err(why) = matches(&frame, line) {
            panic!("{why}\nexpected {line}\ngot      {}", debug(&frame));
        }
    }

    /// Makes sure that nothing is said for now. The clock is paused: time passes once nothing else can happen.
    pub(crate) async fn hears_nothing(&mut self) {
        if let Ok(frame) = tokio::time::timeout(Duration::from_secs(5), self.hear()).await {
            panic!("expected nothing, got {:?}", frame.map(|frame| debug(&frame)));
        }
    }

    /// Lets time pass, which it does once nothing else can happen.
    pub(crate) async fn sleeps(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    /// Closes the stream and gives what the server returned.
    pub(crate) async fn hangs_up(self) -> Result<(), server::Error> {
        drop(self.stream);
        tokio::time::timeout(PATIENCE, self.served).await.expect("the server ends").unwrap()
    }

    /// Waits until the server has ended the connection; gives its last reply and what it returned.
    pub(crate) async fn refusal(mut self) -> (Option<Vec<u8>>, server::Error) {
        let mut last = None;
        while let Some(frame) = tokio::time::timeout(PATIENCE, self.hear()).await.expect("the server ends") {
            last = Some(frame);
        }
        let served = tokio::time::timeout(PATIENCE, self.served).await.expect("the server ends").unwrap();
        (last, served.expect_err("the peer broke the protocol"))
    }
}

/// The names of the messages in the table.
pub(crate) fn names() -> impl Iterator<Item = (u8, &'static str)> {
    TABLE.iter().map(|(code, name, _)| (*code, *name))
}

/// The frame that `line` says.
pub(crate) fn encode(line: &str) -> Vec<u8> {
    let (tag, (code, _, fields), values) = parse(line);
    let mut frame = vec![0, 0, 0, 0, code];
    frame.extend_from_slice(&tag.to_le_bytes());
    for (name, kind) in typed(fields) {
        let value = values.iter().find(|(given, _)| *given == name);
        if value.is_none() && name == "n_uname" {
            continue;
        }
        let (_, value) = value.unwrap_or_else(|| panic!("no {name} in: {line}"));
        frame.extend(field(kind, value));
    }
    let size = frame.len() as u32;
    frame[..4].copy_from_slice(&size.to_le_bytes());
    frame
}

/// Whether `frame` is what `line` says, as far as it says.
fn matches(frame: &[u8], line: &str) -> Result<(), String> {
    let (tag, (code, _, fields), values) = parse(line);
    if frame[5..7] != tag.to_le_bytes() {
        return Err("another tag".into());
    }
    if frame[4] != code {
        return Err("another message".into());
    }
    let mut rest = &frame[7..];
    for (name, kind) in typed(fields) {
        let (got, after) = rest.split_at(length(kind, rest));
        rest = after;
        if let Some((_, value)) = values.iter().find(|(given, _)| *given == name)
            && !(if kind == 'S' { stat::is(&got[2..], value) } else { got == field(kind, value) })
        {
            return Err(format!("another {name}"));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err("bytes are left over".into()) }
}

fn debug(frame: &[u8]) -> String {
    let tag = u16::from_le_bytes([frame[5], frame[6]]);
    format!("{tag} {:?}", p9::wire::R::decode(frame[4], &frame[7..]))
}

type Row = (u8, &'static str, &'static str);

fn parse(line: &str) -> (u16, Row, Vec<(&str, &str)>) {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let tag = words.next().and_then(|tag| tag.parse().ok()).unwrap_or_else(|| panic!("no tag: {line}"));
    let name = words.next().unwrap_or_else(|| panic!("no message: {line}"));
    let row = TABLE.iter().find(|(_, known, _)| *known == name).unwrap_or_else(|| panic!("what is {name}?"));
    let values: Vec<_> =
        words.map(|word| word.split_once('=').unwrap_or_else(|| panic!("not FIELD=VALUE: {word}"))).collect();
    for (given, _) in &values {
        assert!(typed(row.2).any(|(name, _)| name == *given), "{name} has no {given}");
    }
    (tag, *row, values)
}

fn typed(fields: &'static str) -> impl Iterator<Item = (&'static str, char)> {
    fields.split_whitespace().map(|field| (&field[..field.len() - 2], field.chars().last().unwrap()))
}

/// The bytes of a value: numbers as 8, 0x8, 0o8 or `~` for all ones; strings with `\s` `\n` for space and line end; a
/// hash as 64 hexadecimal digits; lists with commas; a qid as `f5v1` (kind, path, version); a directory entry as
/// `QID:COOKIE:TYPE:NAME`.
pub(crate) fn field(kind: char, value: &str) -> Vec<u8> {
    let string = |text: &str| {
        let text = text.replace("\\s", " ").replace("\\n", "\n").replace("\\0", "\0");
        [&(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
    };
    let list: Vec<&str> = value.split(',').filter(|item| !item.is_empty()).collect();
    let counted = |items: Vec<u8>| [&(list.len() as u16).to_le_bytes(), &items[..]].concat();
    match kind {
        'i' => value.bytes().chain(std::iter::repeat(0)).take(16).collect(),
        's' => string(value),
        'd' => {
            let text = string(value);
            [&(text.len() as u32 - 2).to_le_bytes(), &text[2..]].concat()
        }
        'h' => (0..value.len()).step_by(2).map(|at| u8::from_str_radix(&value[at..at + 2], 16).unwrap()).collect(),
        'n' => counted(list.iter().flat_map(|name| string(name)).collect()),
        'Q' => counted(list.iter().flat_map(|qid| self::qid(qid)).collect()),
        'q' => qid(value),
        'S' => {
            let stat = stat::encode(value);
            [&(stat.len() as u16).to_le_bytes(), &stat[..]].concat()
        }
        'e' | 'E' => {
            let entries: Vec<u8> = match kind {
                'e' => list.iter().flat_map(|entry| dirent(entry)).collect(),
                _ => list.iter().flat_map(|entry| [dirent(entry), attributes(entry)].concat()).collect(),
            };
            [&(entries.len() as u32).to_le_bytes(), &entries[..]].concat()
        }
        size => number(value).to_le_bytes()[..size.to_digit(10).unwrap() as usize].to_vec(),
    }
}

pub(crate) fn number(text: &str) -> u64 {
    let number = match text {
        "~" => Ok(u64::MAX),
        _ if text.starts_with("0x") => u64::from_str_radix(&text[2..], 16),
        _ if text.starts_with("0o") => u64::from_str_radix(&text[2..], 8),
        _ => text.parse(),
    };
    number.unwrap_or_else(|_| panic!("not a number: {text}"))
}

pub(crate) fn qid(text: &str) -> Vec<u8> {
    let kind = match &text[..1] {
        "d" => 0x80_u8,
        "l" => 0x02,
        "a" => 0x40,
        "x" => 0x20,
        "f" => 0,
        _ => panic!("not a qid: {text}"),
    };
    let (path, version) = text[1..].split_once('v').unwrap_or((&text[1..], "0"));
    [&[kind], &(number(version) as u32).to_le_bytes()[..], &number(path).to_le_bytes()].concat()
}

fn dirent(text: &str) -> Vec<u8> {
    let parts: Vec<&str> = text.split(':').collect();
    [&qid(parts[0])[..], &number(parts[1]).to_le_bytes(), &[number(parts[2]) as u8], &field('s', parts[3])].concat()
}

/// The attributes of an entry `QID:COOKIE:TYPE:NAME:MODE:LINKS:SIZE` of the test's tree, as it makes them up; none if
/// it has no mode.
fn attributes(text: &str) -> Vec<u8> {
    let parts: Vec<&str> = text.split(':').collect();
    let mut out = Vec::new();
    let (numbers, times): (Vec<u64>, Vec<u64>) = match parts.get(4) {
        None => (vec![0; 5], vec![0; 8]),
        Some(_) => {
            (vec![number(parts[5]), 0, number(parts[6]), 4096, 0], [[1_000_000_000, 5].repeat(3), vec![0; 2]].concat())
        }
    };
    let known = parts.len() > 4;
    out.extend(if known { 0x7ff_u64 } else { 0 }.to_le_bytes());
    out.extend(qid(if known { parts[0] } else { "f0" }));
    for value in if known { [number(parts[4]) as u32, 1, 2] } else { [0; 3] } {
        out.extend(value.to_le_bytes());
    }
    out.extend(numbers.iter().chain(&times).chain(&[0, 0]).flat_map(|value| value.to_le_bytes()));
    out
}

/// How many bytes a field takes at the front of `bytes`.
pub(crate) fn length(kind: char, bytes: &[u8]) -> usize {
    let count = |n: usize| bytes[..n].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    match kind {
        's' | 'S' => 2 + count(2),
        'd' | 'e' | 'E' => 4 + count(4),
        'q' => 13,
        'h' => 32,
        'Q' => 2 + 13 * count(2),
        'n' => panic!("no reply has names"),
        size => size.to_digit(10).unwrap() as usize,
    }
}
