//! Who is asking: the proven peer of a connection.
//!
//! Made by whoever accepted the connection, from what the transport proved, and bound to every node at attach. A tree
//! never sees a credential per call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// The proven peer: its key, what it may reach, whom it acts for.
#[derive(Clone, Debug)]
pub struct Who {
    /// The peer's key as `SHA256:...` (OpenSSH's fingerprint), or empty where the transport proves none.
    pub key: Arc<str>,
    /// The user's name on the grid, as the authorised key's comment or the node's configuration gives it.
    pub user: Arc<str>,
    /// The local uid that a local transport proved (`SO_PEERCRED`), if any.
    pub uid: Option<u32>,
    /// What this peer may reach.
    pub rights: Rights,
    /// A grant that the peer presented: opaque here, checked by whoever made this value.
    pub grant: Option<Bytes>,
    /// The client: one number for all connections of one session. 0 is this process itself; to a server, a peer that
    /// has no number yet, and gets one of its own.
    pub client: u64,
}

/// The next number for a client: apart from those that others count up from 1.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1 << 63);

impl Who {
    /// The same peer as a client of its own, if it has no number yet.
    pub fn numbered(self: Arc<Self>) -> Arc<Self> {
        if self.client != 0 {
            return self;
        }
        Arc::new(Self { client: NEXT_CLIENT.fetch_add(1, Ordering::Relaxed), ..(*self).clone() })
    }

    /// The owner of this process, who may do everything: for trees used in place, and for tests.
    pub fn owner() -> Self {
        Self {
            key: "".into(),
            user: "owner".into(),
            uid: Some(rustix::process::getuid().as_raw()),
            rights: Rights::All,
            grant: None,
            client: 0,
        }
    }
}

/// What a peer may reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rights {
    /// Everything, and commands as the user who authorised it.
    All,
    /// These exports and nothing else: no commands.
    Only(Arc<[Only]>),
}

/// One export that a restricted peer may reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Only {
    /// The export's name; [`Only::EVERY`] for every export there is.
    pub export: String,
    /// Whether it is read-only to this peer, whatever the export itself says.
    pub read_only: bool,
}

impl Only {
    /// What stands for every export, in place of a name.
    pub const EVERY: &str = "*";

    /// Whether it says something of the export called `name`.
    fn is_of(&self, name: &str) -> bool {
        self.export == name || self.export == Self::EVERY
    }
}

impl Rights {
    /// Whether the peer may run commands.
    pub fn may_run(&self) -> bool {
        *self == Self::All
    }

    /// Whether the peer sees the export called `name`, and if so, whether it is read-only to the peer.
    pub fn export(&self, name: &str) -> Option<bool> {
        match self {
            Self::All => Some(false),
            // Granted twice, the wider right counts.
            Self::Only(list) => {
                let mut found = list.iter().filter(|only| only.is_of(name)).peekable();
                found.peek()?;
                Some(found.all(|only| only.read_only))
            }
        }
    }

    /// What of these rights `only` leaves.
    #[must_use]
    pub fn narrowed(&self, only: &[Only]) -> Self {
        let Self::Only(list) = self else { return Self::Only(only.into()) };
        let both = only.iter().flat_map(|wanted| {
            let named = wanted.export != Only::EVERY;
            let theirs = list.iter().filter(move |only| !named || only.is_of(&wanted.export));
            theirs.map(move |only| Only {
                export: if named { wanted.export.clone() } else { only.export.clone() },
                read_only: wanted.read_only || only.read_only,
            })
        });
        Self::Only(both.collect())
    }

    /// Whether nobody who has these rights may do what one who has `wider` may not.
    pub fn within(&self, wider: &Self) -> bool {
        match (self, wider) {
            (_, Self::All) => true,
            (Self::All, Self::Only(_)) => false,
            (Self::Only(list), wider) => list.iter().all(|only| match wider.export(&only.export) {
                Some(read_only) => only.read_only || !read_only,
                None => false,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(text: &str) -> Rights {
        let only = |word: &str| match word.strip_suffix(":ro") {
            Some(export) => Only { export: export.into(), read_only: true },
            None => Only { export: word.into(), read_only: false },
        };
        Rights::Only(text.split(',').map(only).collect())
    }

    #[test]
    fn rights_that_are_narrowed_are_never_wider() {
        for (mine, only, both) in
            [("a,b:ro", "*", "a,b:ro"), ("a,b:ro", "a:ro", "a:ro"), ("*:ro", "a", "a:ro"), ("*", "*:ro", "*:ro")]
        {
            let Rights::Only(list) = rights(only) else { unreachable!() };
            let narrowed = rights(mine).narrowed(&list);
            assert_eq!(narrowed, rights(both), "{mine} and {only}");
            assert!(narrowed.within(&rights(mine)) && narrowed.within(&Rights::All));
        }
        for (wide, narrow) in [("a:ro", "a"), ("a", "b"), ("a", "*"), ("*:ro", "*"), ("a,b:ro", "a,b")] {
            assert!(!rights(narrow).within(&rights(wide)), "{narrow} in {wide}");
        }
        assert!(!Rights::All.within(&rights("*")));
        assert_eq!(rights("*:ro").export("anything"), Some(true));
    }
}
