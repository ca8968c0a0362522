//! `ListFiles` and `ReadFile`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::control::block;
use super::observe::{Answers, page_size};
use super::peer::Peer;
use super::watch::{Stop, finish};
use super::{Node, status};
use crate::causes::chain;
use crate::files::{Entry, FileError, Files, Kind, Page, SandboxFile, SandboxPath};
use crate::launch;
use crate::proto::{
    FileEntry, FileType, ListFilesRequest, ListFilesResponse, ReadFileRequest, ReadFileResponse,
    Timestamp,
};
use crate::task::TaskId;

/// Bytes of an answer.
const CHUNK: u64 = 64 << 10;
/// Answers that wait for a client at most, beside what the connection holds.
const QUEUE: usize = 1;

/// Lists a page of a directory.
///
/// # Errors
///
/// A request that makes no sense, or a directory that is not to be listed.
pub(super) async fn list(
    node: Arc<Node>,
    peer: Peer,
    request: ListFilesRequest,
) -> Result<ListFilesResponse, Status> {
    let ListFilesRequest { task_id, path, page_size: size, page_token } = request;
    let (id, _) = node.known(&peer, &task_id)?;
    let path = sandbox_path(&path)?;
    let page = Page { after: after(&page_token)?, size: page_size(size)? };
    let listing =
        block(move || files(&node, &id)?.list(&path, &page).map_err(|error| of_file(&error)));
    let listing = listing.await?;
    Ok(ListFilesResponse {
        entries: listing.entries.into_iter().map(entry).collect(),
        next_page_token: listing.next.map(|name| token(&name)).unwrap_or_default(),
    })
}

/// Starts to read a file.
///
/// # Errors
///
/// A request that makes no sense, or a file that is not to be read.
pub(super) async fn read(
    node: Arc<Node>,
    peer: Peer,
    request: ReadFileRequest,
) -> Result<Answers<ReadFileResponse>, Status> {
    let ReadFileRequest { task_id, path, offset, length } = request;
    let file = open(node.clone(), &peer, &task_id, &path).await?;
    let range = Range { file, offset, left: length.unwrap_or(u64::MAX) };
    let (to_client, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let told = tell(range, &to_client);
        finish(&node, &to_client, told).await;
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

/// Opens a file for reading.
///
/// # Errors
///
/// As those of [`read`].
pub(super) async fn open(
    node: Arc<Node>,
    peer: &Peer,
    task_id: &str,
    path: &str,
) -> Result<SandboxFile, Status> {
    let (id, _) = node.known(peer, task_id)?;
    let path = sandbox_path(path)?;
    block(move || files(&node, &id)?.open(&path).map_err(|error| of_file(&error))).await
}

/// What is still to be read of a file.
struct Range {
    file: SandboxFile,
    offset: u64,
    left: u64,
}

impl Range {
    /// The next bytes; empty at the end.
    fn read(mut self) -> Result<(Self, ReadFileResponse), Status> {
        let mut data = vec![0; self.left.min(CHUNK) as usize];
        let read = self.file.read_at(self.offset, &mut data);
        let read = read.map_err(|error| status::unavailable(&error))?;
        data.truncate(read);
        data.shrink_to_fit();
        let answer = ReadFileResponse { offset: self.offset, data };
        self.offset = self.offset.saturating_add(read as u64);
        self.left -= read as u64;
        Ok((self, answer))
    }
}

async fn tell(
    mut range: Range,
    to_client: &mpsc::Sender<Result<ReadFileResponse, Status>>,
) -> Result<(), Stop> {
    while range.left > 0 {
        let room = to_client.reserve().await.map_err(|_| Stop::Gone)?;
        let (again, answer) = block(move || range.read()).await?;
        range = again;
        if answer.data.is_empty() {
            break;
        }
        room.send(Ok(answer));
    }
    Ok(())
}

fn files(node: &Node, id: &TaskId) -> Result<Files, Status> {
    let launch = launch::header(&node.root, id).map_err(|error| status::of_launch(&error))?;
    Ok(Files::of(&launch))
}

fn sandbox_path(text: &str) -> Result<SandboxPath, Status> {
    let expected = "a path beneath the sandbox, such as `dir/file`";
    SandboxPath::new(text)
        .map_err(|error| status::bad_field("path", format!("{text:.200?} {error}"), expected))
}

/// A name as a page token: hexadecimal, since it may be any bytes.
fn token(name: &OsString) -> String {
    name.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn after(token: &str) -> Result<Option<OsString>, Status> {
    let digits: Option<Vec<u8>> = token.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    match digits {
        Some(digits) if digits.is_empty() => Ok(None),
        Some(digits) if digits.len() % 2 == 0 => {
            let bytes = digits.chunks(2).map(|digits| digits[0] << 4 | digits[1]).collect();
            Ok(Some(OsString::from_vec(bytes)))
        }
        _ => {
            let found = format!("{token:.200?}");
            Err(status::bad_field("page_token", found, "one of an answer before"))
        }
    }
}

fn entry(entry: Entry) -> FileEntry {
    let Entry { name, attributes, target } = entry;
    let kind = match attributes.kind {
        Kind::File => FileType::Regular,
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => FileType::Unspecified,
    };
    FileEntry {
        name: name.to_string_lossy().into_owned(),
        r#type: kind.into(),
        size_bytes: attributes.size,
        modify_time: Some(Timestamp::from_unix_nanos(attributes.modified)),
        mode: attributes.mode,
        link_target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}

/// A file that is not shown.
fn of_file(error: &FileError) -> Status {
    use FileError as E;
    let text = chain(error);
    let refused = |kind| status::precondition(kind, "path", text.clone());
    match error {
        E::NotFound { .. } => status::info(Code::NotFound, "NO_FILE", text, &[]),
        E::Denied { .. } => status::denied(text),
        E::Link { .. } => refused("LINK"),
        E::Outside { .. } => refused("MOUNT"),
        E::NotDirectory { .. } => refused("NOT_DIRECTORY"),
        E::NotFile { .. } => refused("NOT_FILE"),
        E::Huge { .. } => status::info(Code::ResourceExhausted, "HUGE_DIRECTORY", text, &[]),
        E::Sandbox { .. } => status::precondition("SANDBOX", "sandbox", text),
        E::NoOpenat2 | E::Sys { .. } => status::unavailable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_the_bytes_of_a_name() {
        for name in [&b"a"[..], b"\xff\n", b"0"] {
            let name = OsString::from_vec(name.to_vec());
            assert_eq!(after(&token(&name)).unwrap(), Some(name));
        }
        assert_eq!(after("").unwrap(), None);
        for token in ["a", "0g", "é0", "+1"] {
            assert_eq!(after(token).unwrap_err().code(), Code::InvalidArgument, "{token}");
        }
    }
}
