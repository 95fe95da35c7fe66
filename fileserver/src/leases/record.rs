//! Events as the kernel writes them, and what names a file in them.
//!
//! Read by the thread in [`super::watch`]. The layout is that of fanotify(7); nothing is read past the bytes that came.

use std::os::fd::BorrowedFd;

use crate::disk::FileHandle;

/// What a file is called in an event.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Object {
    /// By fanotify: the file system, and the kernel's handle of the file.
    Handle { fsid: u64, handle: Box<[u8]> },
    /// By inotify: the watch.
    Watch(i32),
}

impl Object {
    /// What fanotify calls the file open as `fd`; `None` where the file system has no handles.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let handle = FileHandle::of(fd)?;
        let fsid = rustix::fs::fstatvfs(fd).ok()?.f_fsid;
        Some(Self::Handle { fsid, handle: handle.parts().1.into() })
    }
}

/// Something happened.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Event {
    /// What: bits of fanotify(7), which are those of inotify(7).
    pub(super) mask: u64,
    /// Whether this process did it.
    pub(super) own: bool,
    /// The directory and the entry that it happened to.
    pub(super) entry: Option<(Object, Box<[u8]>)>,
    /// The file that it happened to.
    pub(super) file: Option<Object>,
}

/// The events that one read of a fanotify descriptor gave.
pub(super) fn fanotify(mut bytes: &[u8]) -> Vec<Event> {
    /// Of `struct fanotify_event_metadata`.
    const HEADER: usize = 24;
    let own = std::process::id() as i32;
    let mut events = Vec::new();
    while let (Some(length), true) = (u32_at(bytes, 0), bytes.len() >= HEADER) {
        let Some(event) = bytes.get(..length as usize).filter(|event| event.len() >= HEADER) else { break };
        bytes = &bytes[length as usize..];
        let mask = u64::from(u32_at(event, 8).unwrap_or(0)) | u64::from(u32_at(event, 12).unwrap_or(0)) << 32;
        let pid = u32_at(event, 20).unwrap_or(0) as i32;
        let mut found = Event { mask, own: pid == own, entry: None, file: None };
        let mut infos = &event[HEADER..];
        while infos.len() >= 4 {
            let (kind, length) = (infos[0], usize::from(u16::from_le_bytes([infos[2], infos[3]])));
            let Some(info) = infos.get(..length).filter(|info| info.len() >= 4) else { break };
            infos = &infos[length..];
            note(kind, info, &mut found);
        }
        events.push(found);
    }
    events
}

/// Takes what `struct fanotify_event_info_fid` says.
fn note(kind: u8, info: &[u8], found: &mut Event) {
    /// Its header and file system.
    const FIXED: usize = 12;
    let (Some(low), Some(high), Some(length)) = (u32_at(info, 4), u32_at(info, 8), u32_at(info, FIXED)) else { return };
    let start = FIXED + 8;
    let Some(handle) = info.get(start..start.saturating_add(length as usize)) else { return };
    let object = Object::Handle { fsid: u64::from(low) | u64::from(high) << 32, handle: handle.into() };
    match kind {
        libc::FAN_EVENT_INFO_TYPE_FID => found.file = Some(object),
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
            let name = info[start + handle.len()..].split(|&b| b == 0).next().unwrap_or_default();
            match name {
                // The directory itself.
                b"" | b"." => found.file = Some(object),
                name => found.entry = Some((object, name.into())),
            }
        }
        _ => {}
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_bytes_come_nothing_is_read_past_them() {
        for length in 0..80_u8 {
            let mut bytes = vec![7; 80];
            bytes[..4].copy_from_slice(&u32::from(length).to_ne_bytes());
            fanotify(&bytes);
            fanotify(&bytes[..length.into()]);
        }
        assert_eq!(fanotify(&[0; 64]), []);
    }
}
