//! The one error a tree answers with.
//!
//! It is a Linux error number (errno(3)), as 9P2000.L carries it in `Rlerror`. A tree's error is *answered* to the
//! peer that asked; errors of the protocol itself are another type and end the connection.

use std::fmt;
use std::io;
use std::num::NonZeroU16;

/// A Linux error number: what a request that failed is answered with.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Errno(NonZeroU16);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "` of errno(3).")] pub const $name: Self = Self::new(libc::$name);)*

            /// All that have a name here.
            pub(crate) const KNOWN: &[Self] = &[$(Self::$name),*];

            /// The symbolic name, when it is one that this crate knows.
            pub fn symbol(self) -> Option<&'static str> {
                match self.code() {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    E2BIG EACCES EAGAIN EBADF EBUSY ECANCELED ECONNREFUSED ECONNRESET EDQUOT EEXIST EFAULT EFBIG EHOSTUNREACH EINTR
    EINVAL EIO EISDIR ELOOP EMFILE EMLINK EMSGSIZE ENAMETOOLONG ENFILE ENODATA ENODEV ENOENT ENOEXEC ENOLCK ENOMEM ENOSPC
    ENOSYS ENOTCONN ENOTDIR ENOTEMPTY ENOTSUP ENOTTY ENXIO EOVERFLOW EPERM EPIPE EPROTO ERANGE EROFS ESPIPE ESRCH
    ESTALE ETIMEDOUT ETXTBSY EXDEV
}

impl Errno {
    /// `EOPNOTSUPP`, which Linux defines as `ENOTSUP`: what one tree or export does not offer.
    pub const EOPNOTSUPP: Self = Self::new(libc::EOPNOTSUPP);

    const fn new(code: i32) -> Self {
        match NonZeroU16::new(code as u16) {
            Some(code) => Self(code),
            None => panic!("an errno is not zero"),
        }
    }

    /// The error numbered `code`; `EIO` when that is no error number (0, negative, or past 4095, as in the kernel).
    pub fn from_code(code: i32) -> Self {
        if (1..4096).contains(&code) { Self::new(code) } else { Self::EIO }
    }

    /// The number, as errno(3) and `Rlerror` give it.
    pub fn code(self) -> i32 {
        i32::from(self.0.get())
    }
}

impl From<io::Error> for Errno {
    fn from(err: io::Error) -> Self {
        err.raw_os_error().map_or(Self::EIO, Self::from_code)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(err: rustix::io::Errno) -> Self {
        Self::from_code(err.raw_os_error())
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.code())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(symbol) => f.write_str(symbol),
            None => write!(f, "errno {}", self.code()),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // std's text ends in " (os error N)", which tells a user nothing.
        let text = io::Error::from_raw_os_error(self.code()).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl std::error::Error for Errno {}
