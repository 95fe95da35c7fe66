//! How a lease is granted, and what keeps its promise against local processes.
//!
//! Asked for by the disk tree in any task. First the lease is recorded, so that every change from then on breaks it;
//! then local processes are watched and, where contents are leased, kept out; what cannot be had of that is given back
//! before the lease is handed out.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use p9::Errno;
use p9::cancel::brief;
use p9::tree::{Guard, Lease, LeaseKind, OnBreak};

use super::grip::KernelLease;
use super::table::Whose;
use super::watch::Target;
use super::{Leases, sys};

/// A file as the authority needs it.
pub(crate) trait Place: Send + 'static {
    /// An `O_PATH` descriptor of it. Errors: `EAGAIN` if one is not at hand and it is to be `cached`.
    fn place(&self, cached: bool) -> Result<Arc<OwnedFd>, Errno>;
    /// Whether it is a directory.
    fn is_dir(&self) -> bool;
    /// It, opened for reading without waiting, if it is a regular file.
    fn reader(&self) -> Result<OwnedFd, Errno>;
    /// A duplicate of a descriptor of ours that has it open for writing.
    fn writer(&self) -> Result<OwnedFd, Errno>;
    /// Whether its contents can be told from those of a moment ago, by its times.
    fn is_settled(&self) -> bool;
}

impl Leases {
    /// A lease for `client` on the inode `key`, of as much of `want` as can be had.
    pub(crate) async fn grant(
        self: &Arc<Self>, client: u64, key: u64, want: LeaseKind, on_break: OnBreak, place: impl Place,
    ) -> Option<Lease> {
        if want == LeaseKind::None || !self.answers(client) {
            return None;
        }
        self.live.fetch_add(1, Ordering::SeqCst);
        let live = Live(self.clone());
        self.drain().await;
        let grant = Granted { leases: self.clone(), key, id: self.id() };
        let done = |grant: Granted, kind| (kind > LeaseKind::None).then(|| Lease { kind, guard: Arc::new(grant) });
        // A watch on what is at hand waits for nobody; nor does what keeps others from a file that the client has open.
        let writes = want == LeaseKind::Write && self.with(key, |entry| entry.is_writer(client));
        if (want == LeaseKind::Attr || writes || place.is_dir())
            && let Some(_one) = self.gripping.try_lock()
            && let Ok(at_hand) = place.place(true)
        {
            let kind = self.grip(client, &grant, want, on_break, &place, Some(at_hand));
            drop(live);
            return done(grant, kind);
        }
        brief(move || {
            let kind = {
                let _one = grant.leases.gripping.lock();
                grant.leases.grip(client, &grant, want, on_break, &place, None)
            };
            drop(live);
            Ok(done(grant, kind))
        })
        .await
        .ok()?
    }

    /// Waits for the operations that began when nothing was leased.
    async fn drain(&self) {
        loop {
            let mut drained = pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.quick.load(Ordering::SeqCst) == 0 {
                return;
            }
            drained.await;
        }
    }

    /// Does what a grant needs, with `gripping` locked; gives what was granted.
    fn grip(
        self: &Arc<Self>, client: u64, grant: &Granted, want: LeaseKind, on_break: OnBreak, place: &impl Place,
        at_hand: Option<Arc<OwnedFd>>,
    ) -> LeaseKind {
        let (key, id) = (grant.key, grant.id);
        let calm = self.calm(key);
        // Held from here on, so that whatever changes from here on breaks it.
        let kind = self.with(key, |entry| {
            let most = match (place.is_dir(), calm) {
                (true, true) | (false, false) => LeaseKind::Read,
                (true, false) => LeaseKind::Attr,
                (false, true) => LeaseKind::Write,
            };
            let kind = want.min(entry.limit(client)).min(most);
            if kind > LeaseKind::None {
                entry.hold(id, client, kind, on_break);
            }
            kind
        });
        let entries = kind > LeaseKind::Attr && place.is_dir();
        if kind == LeaseKind::None || self.watched(key, place, at_hand, entries).is_err() {
            return LeaseKind::None;
        }
        let excludes = kind > LeaseKind::Attr && !entries;
        let kind = if excludes { self.exclude(client, key, kind, place) } else { kind };
        self.with(key, |entry| {
            entry.keep(id, kind);
            // Less if it was broken meanwhile.
            entry.left(id)
        })
    }

    /// Has changes of the inode `key` by local processes noticed, and of its `entries`.
    fn watched(
        self: &Arc<Self>, key: u64, place: &impl Place, at_hand: Option<Arc<OwnedFd>>, entries: bool,
    ) -> Result<(), Errno> {
        if self.with(key, |entry| entry.watch.as_ref().is_some_and(|mark| mark.entries || !entries)) {
            return Ok(());
        }
        let at = at_hand.map_or_else(|| place.place(false), Ok)?;
        let mark = self.watch()?.add(at, Target::Leases { key, entries })?;
        let before = self.with(key, |entry| entry.watch.replace(mark));
        drop(before);
        Ok(())
    }

    /// Keeps local processes from writing the inode `key`, so that `client` may hold `want` of it; gives how much of
    /// it.
    fn exclude(self: &Arc<Self>, client: u64, key: u64, want: LeaseKind, place: &impl Place) -> LeaseKind {
        let (sole, breaking, writes) = self.with(key, |entry| {
            let kernel = entry.kernel.as_ref();
            (kernel.map(KernelLease::is_sole), kernel.is_some_and(KernelLease::is_breaking), entry.is_writer(client))
        });
        match sole {
            _ if breaking || !place.is_settled() => return LeaseKind::Attr,
            Some(true) => return want,
            Some(false) => return LeaseKind::Read,
            None => {}
        }
        let Ok(watch) = self.watch() else { return LeaseKind::Attr };
        let taken = match writes {
            true => place.writer().and_then(|fd| KernelLease::take(fd, sys::Kind::Write, key, &watch)),
            false => place.reader().and_then(|fd| KernelLease::take(fd, sys::Kind::Read, key, &watch)),
        };
        match taken {
            Ok(lease) => {
                self.with(key, |entry| entry.kernel = Some(lease));
                if writes { want } else { LeaseKind::Read }
            }
            Err(errno) => {
                tracing::debug!("no lease on contents: local writers cannot be kept out: {errno:?}");
                LeaseKind::Attr
            }
        }
    }

    /// Lets go of what keeps local processes out of the inode `key`, since `client` is about to open it itself. What
    /// the client held of its contents is asked for where `for_good`; else it has to be [gripped again](Self::regrip).
    pub(crate) fn make_way(&self, client: u64, key: u64, for_good: bool) {
        if self.is_quiet() {
            return;
        }
        let kernel = self.with(key, |entry| entry.kernel.take());
        if kernel.is_some() && for_good {
            self.ask(key, Whose::Own(client), LeaseKind::Attr);
        }
    }

    /// After `client` opened the inode `key` for writing: whoever else opens it is kept out as long as the client holds
    /// its contents, if that can be; else they are asked for. `writer` gives a duplicate of its descriptor.
    pub(crate) fn regrip(self: &Arc<Self>, client: u64, key: u64, writer: impl FnOnce() -> Result<OwnedFd, Errno>) {
        if self.is_quiet() || self.with(key, |entry| entry.most()) < LeaseKind::Read {
            return;
        }
        // Not waited for: this may be no place to wait.
        let gripped = self.gripping.try_lock().is_some_and(|_one| {
            let taken = self.watch().and_then(|watch| KernelLease::take(writer()?, sys::Kind::Write, key, &watch));
            let Ok(lease) = taken else { return false };
            let spare = self.with(key, |entry| match entry.kernel {
                None => entry.kernel.replace(lease),
                Some(_) => Some(lease),
            });
            spare.is_none()
        });
        if !gripped {
            self.ask(key, Whose::Own(client), LeaseKind::Attr);
        }
    }
}

/// A grant under way.
struct Live(Arc<Leases>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A lease that was granted.
struct Granted {
    leases: Arc<Leases>,
    key: u64,
    id: u64,
}

impl Guard for Granted {
    fn keep(&self, kind: LeaseKind) {
        self.leases.with(self.key, |entry| entry.keep(self.id, kind));
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.keep(LeaseKind::None);
    }
}
