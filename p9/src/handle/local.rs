//! Reading and writing a file of this machine: in place when the page cache has it, else on the blocking pool.
//!
//! `preadv2(RWF_NOWAIT)` answers from the page cache in about a microsecond; the blocking pool costs twenty. A short
//! answer from the cache is asked for again on the pool, since it says nothing about where the file ends.

use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek};
use rustix::io::{Errno as Os, ReadWriteFlags, pwritev2, retry_on_intr};
use tokio::sync::oneshot;

use super::line::Write;
use super::{Digest, LocalFile, Written, sys};
use crate::brief;
use crate::cancel::{blocking, hold};
use crate::{Errno, Reply};

/// The types of file systems (statfs(2)) whose files are another machine's, or may be: NFS, SMB, CIFS, SMB2, AFS (two),
/// Coda, Ceph, 9P, FUSE.
const ELSEWHERE: [u32; 10] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x5346_414f,
    0x6b41_4653,
    0x7375_7245,
    0x00c3_6400,
    0x0102_1997,
    0x6573_5546,
];

/// Up to this many bytes are written in place, if nobody is kept waiting.
const SMALL: usize = 64 << 10;

impl LocalFile {
    pub(super) fn read(self: &Arc<Self>, offset: u64, count: u32) -> Reply<'_, Bytes> {
        self.read_into(BytesMut::with_capacity, offset, count)
    }

    /// Reads into a buffer that `make` makes, with room for what may come.
    pub(crate) fn read_into(
        self: &Arc<Self>, make: impl FnOnce(usize) -> BytesMut, offset: u64, count: u32,
    ) -> Reply<'_, Bytes> {
        // No more than the file has: most are smaller than what is asked for. Some that say 0 have contents.
        let left = rustix::fs::fstat(&self.fd).map(|stat| (stat.st_size as u64).saturating_sub(offset)).unwrap_or(0);
        let count = if left == 0 { u64::from(count) } else { left.min(count.into()) } as usize;
        let mut buf = make(count);
        match sys::pread(&self.fd, &mut buf, count, offset, libc::RWF_NOWAIT) {
            Ok(got) if got == count => return Reply::ok(buf.freeze()),
            // At the end of the file there is nothing, cached or not.
            Ok(0) => return Reply::ok(Bytes::new()),
            Ok(_) | Err(Os::AGAIN | Os::OPNOTSUPP | Os::INTR) => {}
            Err(err) => return Errno::from(err).into(),
        }
        let file = self.clone();
        Reply::later(blocking(move || {
            buf.clear();
            retry_on_intr(|| sys::pread(&file.fd, &mut buf, count, offset, 0))?;
            Ok(buf.freeze())
        }))
    }

    pub(super) fn write(self: &Arc<Self>, offset: u64, data: Bytes) -> Reply<'_, Written> {
        let file = self.clone();
        Reply::later(async move {
            let _hold = hold();
            let (done, written) = oneshot::channel();
            if let Some(first) = file.line.join(Write { offset, data, done }) {
                file.begin_with(first);
            }
            written.await.unwrap_or(Err(Errno::EIO))
        })
    }

    /// Sees to it that `first` is done, and then what others want written meanwhile.
    fn begin_with(self: Arc<Self>, first: Write) {
        let small = first.data.len() <= SMALL && !self.is_elsewhere();
        let left = match small.then(brief::turn).flatten() {
            Some(_turn) => self.write_one(first),
            None => Some((self, first)),
        };
        if let Some(left) = left {
            tokio::task::spawn_blocking(move || {
                let mut left = Some(left);
                while let Some((file, write)) = left.take() {
                    left = file.write_one(write);
                }
            });
        }
    }

    /// Does one write of the line. Gives the next, if there is one.
    fn write_one(self: Arc<Self>, write: Write) -> Option<(Arc<Self>, Write)> {
        let Write { offset, data, done } = write;
        let written = catch_unwind(AssertUnwindSafe(|| self.write_now(offset, &data))).unwrap_or(Err(Errno::EIO));
        drop(data);
        // Whoever hears of the last may close the file, and then nothing else is to keep it open.
        let left = self.line.next().map(|next| (self, next));
        let _ = done.send(written);
        left
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<Written, Errno> {
        self.may_write()?;
        // With O_APPEND the kernel ignores the offset, and moves the file's own to behind what it wrote.
        let appending = self.append.as_ref().map(|append| append.lock());
        let at = if appending.is_some() { u64::MAX } else { offset };
        let count = retry_on_intr(|| pwritev2(&self.fd, &[IoSlice::new(data)], at, ReadWriteFlags::empty()))?;
        let offset = match appending {
            Some(_) => Some(rustix::fs::tell(&self.fd)? - count as u64),
            None => None,
        };
        Ok(Written { count: count as u32, offset })
    }

    /// Refuses a writer who was shut out.
    fn may_write(&self) -> Result<(), Errno> {
        self.token.as_ref().map_or(Ok(()), |token| token.may_write())
    }

    /// What the file system of another machine keeps to itself until close(2), which does there what fdatasync(2) does.
    /// A local one said all at each write.
    pub(super) fn flush(self: &Arc<Self>) -> Reply<'_, ()> {
        if self.is_elsewhere() { self.sync(true) } else { Reply::ok(()) }
    }

    fn is_elsewhere(&self) -> bool {
        rustix::fs::fstatfs(&self.fd).is_ok_and(|fs| ELSEWHERE.contains(&(fs.f_type as u32)))
    }

    pub(super) fn sync(self: &Arc<Self>, data_only: bool) -> Reply<'_, ()> {
        let file = self.clone();
        Reply::later(blocking(move || {
            if data_only {
                fdatasync(&file.fd)?
            } else {
                fsync(&file.fd)?
            }
            Ok(())
        }))
    }

    pub(super) fn allocate(self: &Arc<Self>, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        let (file, mode) = (self.clone(), FallocateFlags::from_bits_retain(mode));
        Reply::later(blocking(move || {
            file.may_write()?;
            Ok(fallocate(&file.fd, mode, offset, length)?)
        }))
    }

    pub(super) fn copy(self: &Arc<Self>, offset: u64, to: &Arc<Self>, to_offset: u64, length: u64) -> Reply<'_, u64> {
        let (file, to) = (self.clone(), to.clone());
        Reply::later(blocking(move || {
            to.may_write()?;
            let (mut at, mut to_at, length) = (offset, to_offset, usize::try_from(length).unwrap_or(usize::MAX));
            Ok(copy_file_range(&file.fd, Some(&mut at), &to.fd, Some(&mut to_at), length)? as u64)
        }))
    }

    pub(super) fn digest(self: &Arc<Self>, offset: u64, count: u64) -> Reply<'_, Digest> {
        let file = self.clone();
        Reply::later(blocking(move || Ok(Digest::of_file(&file.fd, offset, count)?)))
    }

    pub(super) fn seek(self: &Arc<Self>, offset: u64, hole: bool) -> Reply<'_, u64> {
        let (file, from) = (self.clone(), if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) });
        Reply::later(blocking(move || {
            // It moves the file's own offset, which says where an append went.
            let _appending = file.append.as_ref().map(|append| append.lock());
            Ok(seek(&file.fd, from)?)
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::Handle;

    fn open(options: &mut OpenOptions, path: &std::path::Path, append: bool) -> Handle {
        let fd: OwnedFd = options.open(path).unwrap().into();
        Handle::Fd(LocalFile::new(fd, append, None))
    }

    #[tokio::test]
    async fn an_append_says_where_it_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = open(OpenOptions::new().append(true).create(true), &path, true);
        let put = |text: &'static [u8]| log.write(0, Bytes::from_static(text));
        assert_eq!(put(b"one\n").await.unwrap(), Written { count: 4, offset: Some(0) });
        assert_eq!(put(b"two\n").await.unwrap(), Written { count: 4, offset: Some(4) });
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[tokio::test]
    async fn writes_that_are_under_way_together_are_all_done() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(OpenOptions::new().read(true).write(true).create(true), &dir.path().join("f"), false);
        let write = |at: u64| file.write(at * 4, Bytes::from(at.to_le_bytes()[..4].to_vec())).into_future();
        for written in futures_util::future::join_all((0..200).map(write)).await {
            assert_eq!(written.unwrap(), Written::count(4));
        }
        let all = file.read(0, 1000).await.unwrap();
        assert!(all.chunks(4).zip(0u32..).all(|(four, at)| four == at.to_le_bytes()), "each is where it belongs");
    }

    #[tokio::test]
    async fn a_read_across_the_end_is_short_and_one_past_it_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"hello").unwrap();
        let file = open(OpenOptions::new().read(true), &path, false);
        assert_eq!(file.read(1, 100).await.unwrap(), "ello");
        assert_eq!(file.read(5, 100).await.unwrap(), "");
        assert_eq!(file.read(1 << 40, 100).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_file_is_allocated_copied_and_searched_for_holes() {
        let dir = tempfile::tempdir().unwrap();
        let make =
            |name: &str| open(OpenOptions::new().read(true).write(true).create(true), &dir.path().join(name), false);
        let (from, to) = (make("from"), make("to"));
        from.write(1 << 20, Bytes::from_static(b"far")).await.unwrap();
        assert_eq!(from.copy(1 << 20, &to, 2, 3).await.unwrap(), 3);
        assert_eq!(to.read(0, 10).await.unwrap(), "\0\0far");
        assert_eq!(from.seek(0, true).await.unwrap(), 0, "it begins with a hole");
        assert!(from.seek(0, false).await.unwrap() > 0, "the data is further on");
        from.allocate(0, 0, 2 << 20).await.unwrap();
        assert_eq!(from.read((2 << 20) - 1, 10).await.unwrap(), "\0", "it is as long as what was allocated");
        assert_eq!(from.copy(0, &Handle::Bytes(Bytes::new()), 0, 1).await.err(), Some(Errno::EOPNOTSUPP));
    }

    #[tokio::test]
    async fn a_writer_who_was_shut_out_changes_nothing() {
        struct ShutOut;
        impl crate::handle::Token for ShutOut {
            fn may_write(&self) -> Result<(), Errno> {
                Err(Errno::ESTALE)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"hello").unwrap();
        let fd: OwnedFd = OpenOptions::new().read(true).write(true).open(&path).unwrap().into();
        let file = Handle::Fd(LocalFile::new(fd, false, Some(Box::new(ShutOut))));
        assert_eq!(file.write(0, Bytes::from_static(b"x")).await.err(), Some(Errno::ESTALE));
        assert_eq!(file.allocate(0, 0, 100).await.err(), Some(Errno::ESTALE));
        assert_eq!(file.copy(0, &file, 5, 1).await.err(), Some(Errno::ESTALE));
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        assert_eq!(file.read(0, 100).await.unwrap(), "hello");
    }
}
