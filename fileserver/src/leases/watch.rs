//! The thread that hears of changes by local processes, and what it watches for whom.
//!
//! One for each lease authority, started with its first watch and ended with the authority. It waits for events of
//! fanotify(7), which name the process, so that our own changes are told from others'; of inotify(7), for what
//! fanotify cannot watch; and for the signals of kernel leases that are being broken. It tells the authority, which
//! tells the holders; it never waits for anybody. When events were lost, every lease is broken.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use p9::Errno;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};

use super::events::Lines;
use super::record::{self, Event, Object};
use super::{Leases, Source, sys};

/// How long events are left to gather while only this process makes any.
const TOGETHER: Duration = Duration::from_millis(1);

/// What is watched, and the thread that does it.
pub(super) struct Watch {
    fanotify: Option<OwnedFd>,
    inotify: Option<OwnedFd>,
    /// Wakes the thread: the deadlines have changed, or it is to end.
    wake: OwnedFd,
    /// The thread's number, to which kernel leases report.
    pub(super) thread: i32,
    marks: Mutex<Marks>,
    most: usize,
}

#[derive(Default)]
struct Marks {
    targets: HashMap<Object, Vec<(u64, Target)>>,
    /// By the descriptor of the kernel lease: on which inode it is.
    leases: HashMap<RawFd, u64>,
    /// When a kernel lease that is being broken must be gone.
    deadlines: Vec<(Instant, u64)>,
    next: u64,
    /// Targets that are lines.
    lines: usize,
    ended: bool,
}

/// Who wants to know.
#[derive(Clone)]
pub(super) enum Target {
    /// Those who hold leases on this inode and, if it is a directory, on its `entries`.
    Leases { key: u64, entries: bool },
    /// An open `events` stream of this directory.
    Lines(Arc<Lines>),
}

/// One watch; dropping it ends it.
pub(super) struct Mark {
    watch: Arc<Watch>,
    object: Object,
    id: u64,
    /// By what the mark is taken away again.
    place: Arc<OwnedFd>,
    is_dir: bool,
    /// Whether changes of a directory's entries are told, too.
    pub(super) entries: bool,
}

impl Watch {
    /// Starts the thread, which tells `leases`. `most`: how much may be watched at once.
    pub(super) fn start(leases: Weak<Leases>, source: Source, most: usize) -> Result<Arc<Self>, Errno> {
        let fanotify = if source == Source::Inotify { None } else { sys::fanotify().ok() };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        if fanotify.is_none() && inotify.is_none() {
            return Err(Errno::EOPNOTSUPP);
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, started) = std::sync::mpsc::channel();
        let run = move || {
            let (breaks, thread) = match sys::Breaks::here() {
                Ok(here) => here,
                Err(errno) => return drop(sender.send(Err(errno))),
            };
            let marks = Mutex::default();
            let watch = Arc::new(Self { fanotify, inotify, wake, thread, marks, most });
            if sender.send(Ok(watch.clone())).is_ok() {
                watch.run(&breaks, &leases);
            }
        };
        std::thread::Builder::new().name("leases".into()).spawn(run)?;
        started.recv().map_err(|_| Errno::EIO)?
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        self.marks.lock().ended = true;
        self.wake();
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Watches the file that `place` stands for. Errors: `ENOSPC` for one watch too many; whatever keeps the kernel
    /// from telling of changes there.
    pub(super) fn add(self: &Arc<Self>, place: Arc<OwnedFd>, target: Target) -> Result<Mark, Errno> {
        // Under the lock, so that nobody takes a mark away that was just found to be there.
        let mut marks = self.marks.lock();
        // Who only reads what happens leaves room for leases.
        let lines = matches!(target, Target::Lines(_));
        if marks.targets.len() >= self.most || lines && marks.lines >= self.most / 4 {
            return Err(Errno::ENOSPC);
        }
        let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode).is_dir();
        let entries = lines || matches!(target, Target::Leases { entries: true, .. });
        let object = self.watched(&place, is_dir, entries)?;
        marks.next += 1;
        marks.lines += usize::from(lines);
        let id = marks.next;
        marks.targets.entry(object.clone()).or_default().push((id, target));
        Ok(Mark { watch: self.clone(), object, id, place, is_dir, entries })
    }

    fn watched(&self, place: &OwnedFd, is_dir: bool, children: bool) -> Result<Object, Errno> {
        if let (Some(queue), Some(object)) = (&self.fanotify, Object::of(place.as_fd())) {
            let mask = match (is_dir, children) {
                (false, _) => sys::SELF,
                (true, false) => sys::SELF & !libc::FAN_MODIFY | sys::ENTRIES | libc::FAN_ONDIR,
                (true, true) => sys::SELF | sys::ENTRIES | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD,
            };
            match sys::mark(queue.as_fd(), place.as_fd(), mask, true) {
                Ok(()) => return Ok(object),
                Err(errno) => tracing::debug!("fanotify: {errno:?}; inotify instead"),
            }
        }
        let queue = self.inotify.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let mask = if is_dir { sys::SELF | sys::ENTRIES } else { sys::SELF };
        let flags = WatchFlags::from_bits_retain(mask as u32);
        Ok(Object::Watch(inotify::add_watch(queue, format!("/proc/self/fd/{}", place.as_raw_fd()), flags)?))
    }

    /// The break of a kernel lease on `fd` concerns the inode `key`.
    pub(super) fn leased(&self, fd: RawFd, key: u64) {
        self.marks.lock().leases.insert(fd, key);
    }

    /// There is no kernel lease on `fd` any more.
    pub(super) fn unleased(&self, fd: RawFd) {
        self.marks.lock().leases.remove(&fd);
    }

    fn run(&self, breaks: &sys::Breaks, leases: &Weak<Leases>) {
        let (mut buf, mut own) = (vec![0; 64 << 10], false);
        loop {
            let timeout = {
                let marks = self.marks.lock();
                if marks.ended {
                    return;
                }
                let next = marks.deadlines.iter().map(|(when, _)| *when).min();
                next.map(|next| next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            };
            // What this process does comes in numbers, and concerns nobody: it is read together.
            match own {
                true => self.sleep(breaks, Some(TOGETHER), false),
                false => self.sleep(breaks, timeout, true),
            }
            // The authority may be gone at any time, and with it the need for all this.
            let Some(leases) = leases.upgrade() else { return };
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            self.tell_breaks(breaks, &leases);
            own = self.tell_events(&mut buf, &leases);
            self.tell_deadlines(&leases);
        }
    }

    /// Sleeps until there is something to do, or an event, if it is to be woken by `events`.
    fn sleep(&self, breaks: &sys::Breaks, timeout: Option<Duration>, events: bool) {
        let mut fds = vec![PollFd::new(breaks, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        if events {
            fds.extend(self.fanotify.iter().chain(&self.inotify).map(|queue| PollFd::new(queue, PollFlags::IN)));
        }
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn tell_breaks(&self, breaks: &sys::Breaks, leases: &Arc<Leases>) {
        while let Some(broken) = breaks.next() {
            let keys: Vec<u64> = {
                let marks = self.marks.lock();
                match broken {
                    Some(fd) => marks.leases.get(&fd).copied().into_iter().collect(),
                    // There was no room to say which: all of them may be.
                    None => marks.leases.values().copied().collect(),
                }
            };
            for key in keys {
                if let Some(until) = leases.kernel_broken(key) {
                    self.marks.lock().deadlines.push((until, key));
                }
            }
        }
    }

    fn tell_deadlines(&self, leases: &Arc<Leases>) {
        let now = Instant::now();
        let over: Vec<u64> = {
            let mut marks = self.marks.lock();
            let over = marks.deadlines.iter().filter(|(when, _)| *when <= now).map(|(_, key)| *key).collect();
            marks.deadlines.retain(|(when, _)| *when > now);
            over
        };
        over.into_iter().for_each(|key| leases.kernel_expired(key));
    }

    /// Tells what happened; whether something did, and all of it was this process's doing.
    fn tell_events(&self, buf: &mut [u8], leases: &Arc<Leases>) -> bool {
        let mut events = Vec::new();
        if let Some(queue) = &self.fanotify {
            while let Ok(got @ 1..) = rustix::io::read(queue, &mut *buf) {
                events.extend(record::fanotify(&buf[..got]));
            }
        }
        if let Some(queue) = &self.inotify {
            read_inotify(queue.as_fd(), &mut events);
        }
        events.iter().for_each(|event| self.tell(event, leases));
        !events.is_empty() && events.iter().all(|event| event.own)
    }

    fn tell(&self, event: &Event, leases: &Arc<Leases>) {
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            tracing::warn!("changes by local processes were lost: all leases are broken");
            for target in self.all() {
                if let Target::Lines(lines) = target {
                    lines.lost();
                }
            }
            return leases.break_all();
        }
        // Of a directory's entry, then of the file itself.
        if let Some((dir, name)) = &event.entry {
            for target in self.targets(dir) {
                match target {
                    Target::Leases { key, .. } if event.mask & sys::ENTRIES != 0 => leases.changed(key, event.own),
                    Target::Leases { key, entries: true } => leases.entry_changed(key, event.own),
                    Target::Leases { .. } => {}
                    Target::Lines(lines) => lines.add(event.mask, name),
                }
            }
        }
        if let Some(file) = event.file.as_ref().filter(|_| event.mask & sys::SELF != 0) {
            for target in self.targets(file) {
                if let Target::Leases { key, .. } = target {
                    leases.changed(key, event.own);
                }
            }
        }
    }

    fn targets(&self, object: &Object) -> Vec<Target> {
        let marks = self.marks.lock();
        marks.targets.get(object).map(|all| all.iter().map(|(_, target)| target.clone()).collect()).unwrap_or_default()
    }

    fn all(&self) -> Vec<Target> {
        self.marks.lock().targets.values().flatten().map(|(_, target)| target.clone()).collect()
    }
}

/// All events that wait in an inotify queue.
fn read_inotify(queue: BorrowedFd<'_>, events: &mut Vec<Event>) {
    let mut buf = vec![MaybeUninit::uninit(); 16 << 10];
    let mut reader = inotify::Reader::new(queue, &mut buf);
    while let Ok(event) = reader.next() {
        let (object, mask) = (Object::Watch(event.wd()), u64::from(event.events().bits()));
        let (entry, file) = match event.file_name() {
            Some(name) => (Some((object, name.to_bytes().into())), None),
            None => (None, Some(object)),
        };
        events.push(Event { mask, own: false, entry, file });
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut marks = self.watch.marks.lock();
        let Some(targets) = marks.targets.get_mut(&self.object) else { return };
        let gone = targets.iter().position(|(id, _)| *id == self.id).map(|at| targets.swap_remove(at));
        let is_last = targets.is_empty();
        marks.lines -= usize::from(matches!(gone, Some((_, Target::Lines(_)))));
        if !is_last {
            return;
        }
        marks.targets.remove(&self.object);
        match (&self.object, &self.watch.fanotify, &self.watch.inotify) {
            (Object::Handle { .. }, Some(queue), _) => {
                let more = sys::ENTRIES | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
                let mask = if self.is_dir { sys::SELF | more } else { sys::SELF };
                let _ = sys::mark(queue.as_fd(), self.place.as_fd(), mask, false);
            }
            (Object::Watch(wd), _, Some(queue)) => {
                let _ = inotify::remove_watch(queue, *wd);
            }
            _ => {}
        }
    }
}

/// Whether the kernel's file times tell any two versions apart that somebody looked at: since Linux 6.13. Before, two
/// changes in one tick of the clock look like one.
pub(crate) fn fine_times() -> bool {
    static FINE: OnceLock<bool> = OnceLock::new();
    *FINE.get_or_init(|| std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|text| is_fine(&text)))
}

fn is_fine(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6_u32, 13_u32)
}

/// A new `O_PATH` descriptor of the file open as `fd`.
pub(crate) fn place_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use p9::How;
    use p9::tree::LeaseKind;

    use super::*;
    use crate::{Disk, DiskOptions, LeaseOptions};

    #[tokio::test]
    async fn when_events_were_lost_every_lease_is_broken_and_readers_are_told() {
        let (dir, leases) = (tempfile::tempdir().unwrap(), Leases::new(LeaseOptions::default()));
        std::fs::write(dir.path().join("f"), "").unwrap();
        let disk = Disk::open(dir.path(), DiskOptions { leases: leases.clone(), ..DiskOptions::new([7; 32]) }).unwrap();
        let names = [p9::Name::new(b"f").unwrap()];
        let root = disk.root_for(1);
        let file = root.walk(&names, p9::Want::default()).await.unwrap().reached().unwrap().node;
        let (sender, told) = std::sync::mpsc::channel();
        let mut held = Vec::new();
        for (node, kind) in [(&root, LeaseKind::Attr), (&file, LeaseKind::Read)] {
            let sender = sender.clone();
            held.push(node.lease(kind, Arc::new(move |keep| sender.send(keep).unwrap_or(()))).await.unwrap().unwrap());
        }
        let events = root.events().await.unwrap();
        let lost = Event { mask: libc::FAN_Q_OVERFLOW, own: false, entry: None, file: None };
        leases.watch().unwrap().tell(&lost, &leases);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [LeaseKind::None; 2]);
        assert_eq!(events.read(0, 100).await.unwrap(), "overflow\n");
        drop(held);
        assert!(file.open(How::WRITE).await.is_ok());
    }

    #[test]
    fn file_times_are_fine_since_linux_6_13() {
        for (release, fine) in
            [("6.13.0", true), ("6.18.44-x", true), ("7.0", true), ("6.1.0-18-amd64", false), ("", false)]
        {
            assert_eq!(is_fine(release), fine, "{release}");
        }
    }
}
