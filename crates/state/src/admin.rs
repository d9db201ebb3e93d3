//! The Unix socket on which an engine answers its node: HTTP/1.1, readable for the engine's user and root alone.

use std::path::Path;

use axum::Router;
use tokio::net::UnixListener;

/// Serves until the process ends. The socket of a process before is replaced.
///
/// # Errors
///
/// The socket can't be made.
pub async fn serve(socket: &Path, router: Router) -> std::io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    axum::serve(listener, router).await
}
