//! How the allocator deals with memory by the megabyte.

/// Blocks from this size on are mapped by themselves: glibc's own value, until it raises it.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 << 10;

/// Lets every large block come from the kernel as zeros that cost nothing until they are used. glibc stops doing that for sizes
/// that have once been given back, and clears what it keeps instead: a table that grows would hold one packet up for
/// milliseconds. To be called before there are threads.
pub(crate) fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a parameter of the allocator, of which every value is valid. Where it is refused all is as before.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}
