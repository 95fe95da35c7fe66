//! Messages in any order, in every dialect, on a directory with links that lead out: no peer gets out, no answer fails
//! to come, and nothing is kept when the peers have gone.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fileserver::{Disk, DiskOptions};
use p9::server::{self, Limits};
use p9::wire::legacy::{DMAPPEND, DMDIR, DMEXCL, Stat};
use p9::wire::{Counted, Data, Dialect, NO_FID, NO_TAG, R, Step, Steps, Str, T};
use p9::{Name, Who};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Messages of each peer in one sequence.
const MESSAGES: usize = 150;
const NAMES: [&str; 10] = ["a", "b", "dir", "sub", "up", "out", "far", "absolute", "loop", "secret"];
const TARGETS: [&[u8]; 6] = [b"..", b"../..", b"../../outside", b"../outside/secret", b"dir/sub", b"loop"];

/// Numbers that look like any, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 8) % bound
    }

    fn of<U: Copy>(&mut self, all: &[U]) -> U {
        all[self.below(all.len() as u64) as usize]
    }

    fn fid(&mut self) -> u32 {
        self.below(6) as u32
    }

    fn name(&mut self) -> Name<'static> {
        Name::new(self.of(&NAMES).as_bytes()).unwrap()
    }

    fn number(&mut self) -> u64 {
        let small = self.below(100);
        self.of(&[0, 1, small, small, 1 << 20, u64::MAX])
    }

    fn steps(&mut self) -> Vec<Step<'static>> {
        let count = self.of(&[0, 0, 1, 1, 1, 2, 2, 3, 4]);
        (0..count).map(|_| if self.below(6) == 0 { Step::Up } else { Step::Into(self.name()) }).collect()
    }

    /// Any message of `dialect`, whose borrowed parts are in `steps` or for ever.
    fn message<'a>(&mut self, dialect: Dialect, steps: &'a [u8], count: u16) -> T<'a> {
        let (fid, other, name, number) = (self.fid(), self.fid(), self.name(), self.number());
        // Fid 0 stays what was attached to, so that there is always a way on.
        let own = fid.max(1);
        let flags = self.of(&[0, 1, 2, 0o1000, 0o1002, 0o2001, 0o200]);
        let mode = self.of(&[0o644, 0o700, 0o777, 0o4755, 0]);
        match self.below(16) {
            0..=2 => T::Walk { fid: self.of(&[0, fid]), newfid: other.max(1), steps: Steps::of(steps, count) },
            3 => T::Read { fid, offset: self.of(&[0, 0, 10, number]), count: 4000 },
            4 => T::Write { fid, offset: self.below(1000), data: Data(b"written") },
            5 => T::Clunk { fid: own },
            6 => self.of(&[T::Remove { fid: own }, T::Clunk { fid: own }, T::Clunk { fid: own }]),
            _ if dialect == Dialect::Legacy => self.only_legacy(fid, name, number),
            7 | 9 => T::Lopen { fid: own, flags },
            8 => T::Lcreate { fid: own, name, flags, mode, gid: !0 },
            10 => T::Getattr { fid, mask: !0 },
            _ => self.only_l(fid, other, name, mode, number),
        }
    }

    fn only_legacy(&mut self, fid: u32, name: Name<'static>, number: u64) -> T<'static> {
        let mode = self.of(&[0, 0, 1, 2, 3, 0x10, 0x11, 0x40, 0x42, 0xff]);
        let perm = self.of(&[0o644, 0o777, DMDIR | 0o755, DMAPPEND | 0o644, DMEXCL | 0o600, !0]);
        let stat = Stat::untouched();
        let new = Str(self.name().as_bytes());
        match self.below(8) {
            0..=2 => T::Open { fid: fid.max(1), mode },
            3 | 4 => T::Create { fid: fid.max(1), name, perm, mode },
            5 => T::Stat { fid },
            _ => {
                let changed = [
                    stat,
                    Stat { name: new, ..stat },
                    Stat { name: Str(b"../x"), ..stat },
                    Stat { length: number, ..stat },
                    Stat { mode: perm, ..stat },
                    Stat { name: new, mtime: 5, length: 7, ..stat },
                ];
                T::Wstat { fid, stat: Counted(self.of(&changed)) }
            }
        }
    }

    fn only_l(&mut self, fid: u32, other: u32, name: Name<'static>, mode: u32, number: u64) -> T<'static> {
        let (newname, gid) = (self.name(), !0);
        match self.below(23) {
            10 => T::Mknod { dfid: fid, name, mode: libc::S_IFIFO | mode, major: 0, minor: 0, gid },
            11 => T::Xattrwalk { fid, newfid: other.max(1), name: Str(self.of(&[&b""[..], b"user.x"])) },
            12 => T::Xattrcreate {
                fid: fid.max(1),
                name: Str(b"user.x"),
                size: self.of(&[0, 7, number]),
                flags: self.of(&[0, 1, 2]),
            },
            13 => {
                let (kind, length) = (self.of(&[0, 1, 2]), self.number());
                T::Lock { fid, kind, flags: 0, start: number, length, proc_id: 1, client_id: Str(b"peer") }
            }
            14 => T::Getlock { fid, kind: 1, start: 0, length: number, proc_id: 1, client_id: Str(b"peer") },
            15 => T::Fsync { fid, datasync: self.of(&[0, 1]) },
            // What only our dialect has, and any other refuses.
            16 => T::Readdirplus { fid, offset: self.of(&[0, 0, number]), count: 2000 },
            17 => {
                let flags = self.of(&[0, 1, 2, 4]);
                T::Rename2 { olddirfid: fid, oldname: name, newdirfid: other, newname, flags }
            }
            18 => T::Allocate { fid, mode: self.of(&[0, 1, 3]), offset: self.below(1000), length: number },
            19 => T::Seek { fid, offset: number, whence: self.of(&[3, 4, 9]) },
            20 => T::Copy { fid, offset: self.below(10), tofid: other, tooffset: self.below(10), length: number },
            21 => T::Append { fid, data: Data(b"appended") },
            22 => T::Digest { fid, offset: self.below(10), count: number },
            0 | 1 => T::Symlink { fid, name, target: Str(self.of(&TARGETS)), gid },
            2 => T::Mkdir { dfid: fid, name, mode, gid },
            3 => T::Renameat { olddirfid: fid, oldname: name, newdirfid: other, newname },
            4 => T::Unlinkat { dirfid: fid, name, flags: self.of(&[0, 0x200]) },
            5 => T::Link { dfid: fid, fid: other, name },
            6 => T::Rename { fid, dfid: other, name },
            7 => T::Readdir { fid, offset: self.of(&[0, 0, number]), count: 1000 },
            8 => T::Readlink { fid },
            _ => {
                let valid = self.of(&[1, 8, 0x30, 0x1b0]);
                let (uid, gid, size) = (0, 0, number);
                T::Setattr {
                    fid,
                    valid,
                    mode,
                    uid,
                    gid,
                    size,
                    atime_sec: 1,
                    atime_nsec: 2,
                    mtime_sec: 3,
                    mtime_nsec: 4,
                }
            }
        }
    }
}

/// One peer of the server.
struct Peer(DuplexStream, Dialect);

impl Peer {
    async fn attached(
        disk: &Arc<Disk>, dialect: Dialect,
    ) -> (Self, tokio::task::JoinHandle<Result<(), server::Error>>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let served = tokio::spawn(server::serve(far, disk.clone(), Arc::new(Who::owner()), Limits::default()));
        let mut peer = Self(near, dialect);
        peer.ask(NO_TAG, &T::Version { msize: 8192, version: Str(dialect.version()) }).await;
        let n_uname = (dialect != Dialect::Legacy).then_some(!0);
        peer.ask(1, &T::Attach { fid: 0, afid: NO_FID, uname: Str(b""), aname: Str(b""), n_uname }).await;
        (peer, served)
    }

    /// Asks, and sees to it that the answer is one that may come.
    async fn ask(&mut self, tag: u16, message: &T<'_>) {
        let mut frame = Vec::new();
        message.encode(tag, &mut frame);
        self.0.write_all(&frame).await.unwrap();
        let size = tokio::time::timeout(Duration::from_secs(60), self.0.read_u32_le()).await;
        let size =
            size.unwrap_or_else(|_| panic!("no answer to {message:?}")).unwrap_or_else(|_| panic!("{message:?}"));
        frame.resize(size as usize - 4, 0);
        self.0.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[1..3], tag.to_le_bytes());
        let answer = R::decode(frame[0], &frame[3..]).unwrap().unwrap();
        let refused = matches!(answer, R::Lerror { .. } | R::Error { .. });
        assert!(refused || answer.code() == message.code() + 1, "{message:?}: {answer:?}");
        assert_eq!(
            self.1 == Dialect::Legacy,
            matches!(answer, R::Error { .. }) || self.1 == Dialect::Legacy && !refused
        );
        assert!(!frame.windows(6).any(|six| six == b"SECRET"), "{message:?} gets out: {answer:?}");
    }

    async fn asks_anything(mut self, seed: u64) {
        let mut random = Random(seed | 1);
        for tag in 0..MESSAGES {
            let steps = random.steps();
            let (bytes, count) = (Steps::encode(&steps), steps.len() as u16);
            let message = random.message(self.1, &bytes, count);
            self.ask(tag as u16, &message).await;
        }
    }
}

/// `export` with links that lead out of it, to `outside` with its secret.
fn scene(dir: &Path) -> Arc<Disk> {
    for path in ["export/dir/sub", "outside/sub"] {
        std::fs::create_dir_all(dir.join(path)).unwrap();
    }
    std::fs::write(dir.join("export/a"), "inside").unwrap();
    std::fs::write(dir.join("outside/secret"), "SECRET").unwrap();
    let absolute = dir.join("outside");
    let links = [
        ("up", Path::new("..")),
        ("out", Path::new("../outside")),
        ("loop", Path::new("loop")),
        ("absolute", &absolute),
    ];
    for (name, target) in links {
        symlink(target, dir.join("export").join(name)).unwrap();
    }
    symlink("../../outside/secret", dir.join("export/dir/far")).unwrap();
    Disk::open(&dir.join("export"), DiskOptions::new([7; 32])).unwrap()
}

async fn run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = scene(dir.path());
    let holders = Arc::strong_count(&disk);
    let (mut peers, mut served) = (Vec::new(), Vec::new());
    for (dialect, salt) in [(Dialect::Legacy, 1), (Dialect::Legacy, 2), (Dialect::L, 3), (Dialect::Slashn, 4)] {
        let (peer, serving) = Peer::attached(&disk, dialect).await;
        peers.push(tokio::spawn(peer.asks_anything(seed.wrapping_mul(2 * salt + 1))));
        served.push(serving);
    }
    for peer in peers {
        peer.await.unwrap();
    }
    for serving in served {
        serving.await.unwrap().unwrap();
    }
    let freed = async {
        while Arc::strong_count(&disk) > holders {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), freed).await.expect("nothing is kept");
    let outside = dir.path().join("outside");
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"SECRET");
    let mut left: Vec<_> = std::fs::read_dir(outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["secret", "sub"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_messages_gets_out_or_leaves_anything(seed: u64) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(seed));
    }
}
