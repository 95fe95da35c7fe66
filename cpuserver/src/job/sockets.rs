//! Places for the sockets of a job, where its namespace has none.
//!
//! Init mounts a socket over what is there ([`crate::launch`]), so something has to be there. It is put into the
//! namespace and not into a directory of the caller's: so it is the job's alone, and goes with it, however that ends.

use std::path::{Path, PathBuf};

use ns::Namespace;
use ns::text::Flags;
use p9::layer::Layer;
use p9::{Attr, Errno, synth};

/// Puts something at each of `sockets` where `namespace` has nothing, as the user `shown`. What the kernel mounts at
/// `mounted` has room by itself. Errors: those of [`Namespace::mount`].
pub(super) async fn place(
    namespace: &Namespace, sockets: impl Iterator<Item = &PathBuf>, mounted: &[&Path], shown: (u32, u32),
) -> Result<(), ns::Error> {
    for path in sockets.filter(|path| !mounted.iter().any(|at| path.starts_with(at))) {
        let Some(text) = path.to_str() else { continue };
        if namespace.walk(text).await.err() == Some(Errno::ENOENT) {
            let socket = Socket(shown).over(synth::file(|| Err(Errno::ENXIO)));
            namespace.mount("#socket", text, socket, text, Flags::default()).await?;
        }
    }
    Ok(())
}

/// What shows a file as a socket of this user and group.
#[derive(Clone, Copy)]
struct Socket((u32, u32));

impl Layer for Socket {
    fn attr(&self, attr: Attr) -> Attr {
        let Self((uid, gid)) = *self;
        Attr { mode: libc::S_IFSOCK | 0o600, uid, gid, ..attr }
    }
}
