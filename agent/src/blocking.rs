//! Work on files beside a runtime whose threads must not wait for a disk.

use crate::error::Error;

/// Runs blocking work where it may block. It runs to its end even if the caller goes away: a write is never half a write.
///
/// # Errors
/// Those of `work`; also where it panicked, or the runtime ends.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::failed(format!("work on files: {e}")))?
}
