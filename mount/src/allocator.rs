//! Hints to the C library's allocator, for programs that serve mounts.
//!
//! Called once by `main`, before there are threads; and whenever much was freed, by a thread that may block. Each FUSE
//! session allocates 16 MiB of zeros per thread and once more for its handshake; glibc raises its threshold for fresh
//! mappings after the first time and then clears that memory by hand, which makes the start of a job ten times slower.
//! And each thread's heap would be shrunk and grown again, by a system call, for every few requests.

/// Keeps large blocks in mappings of their own, which the kernel gives zeroed and takes back whole, and up to 1 MiB of
/// each thread's heap at hand.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers and touches nothing but the allocator's own settings, under its lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Much was freed: what lies between that which is left is given back to the machine. It takes some milliseconds.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches nothing but what is free, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
