//! A small NBD client of our own: many requests in flight, in any order, each answer told apart. Independent of the
//! server's code on purpose, so that the two do not share a misunderstanding. Source: the NBD protocol
//! (`doc/proto.md` of NetworkBlockDevice/nbd).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
/// An answer that takes longer than this is a hang, not a slow disk: I/O held for a failed replica takes 8 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// A connection to a server, of either kind.
pub trait Stream: Read + Write + Send + std::fmt::Debug {
    /// How long a read may wait.
    ///
    /// # Errors
    /// What the system says.
    fn deadline(&self, after: Duration) -> io::Result<()>;
    /// No more is sent.
    ///
    /// # Errors
    /// What the system says.
    fn end_sending(&self) -> io::Result<()>;
}
impl Stream for UnixStream {
    fn deadline(&self, after: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(after)).and_then(|()| self.set_write_timeout(Some(after)))
    }
    fn end_sending(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}
impl Stream for TcpStream {
    fn deadline(&self, after: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(after)).and_then(|()| self.set_write_timeout(Some(after)))
    }
    fn end_sending(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

/// What is asked of the volume. Offsets and lengths are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The bytes there.
    Read {
        /// From here.
        offset: u64,
        /// This many.
        len: usize,
    },
    /// These bytes to there.
    Write {
        /// To here.
        offset: u64,
        /// These.
        data: Vec<u8>,
        /// On stable storage before the answer.
        fua: bool,
    },
    /// Everything acknowledged to stable storage.
    Flush,
    /// The range is not needed any more.
    Trim {
        /// From here.
        offset: u64,
        /// This many.
        len: usize,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// From here.
        offset: u64,
        /// This many.
        len: usize,
        /// It stays allocated.
        no_hole: bool,
    },
}

impl Command {
    fn code(&self) -> u16 {
        match self {
            Self::Read { .. } => 0,
            Self::Write { .. } => 1,
            Self::Flush => 3,
            Self::Trim { .. } => 4,
            Self::WriteZeroes { .. } => 6,
        }
    }
    fn flags(&self) -> u16 {
        match self {
            Self::Write { fua: true, .. } => FLAG_FUA,
            Self::WriteZeroes { no_hole: true, .. } => FLAG_NO_HOLE,
            _ => 0,
        }
    }
    fn range(&self) -> (u64, usize) {
        match self {
            Self::Write { offset, data, .. } => (*offset, data.len()),
            Self::Read { offset, len }
            | Self::Trim { offset, len }
            | Self::WriteZeroes { offset, len, .. } => (*offset, *len),
            Self::Flush => (0, 0),
        }
    }
}

/// The answer to one command.
#[derive(Debug)]
pub struct Completion {
    /// Which command.
    pub cookie: u64,
    /// What was read, or the error that the volume answered.
    pub result: Result<Vec<u8>, io::Error>,
}

/// One connection in the transmission phase.
#[derive(Debug)]
pub struct BlockClient {
    stream: Box<dyn Stream>,
    /// Bytes to come with the answer, by cookie.
    in_flight: HashMap<u64, usize>,
    next_cookie: u64,
    /// The size that the server told.
    pub size_bytes: u64,
    /// The transmission flags that the server told.
    pub flags: u16,
}

impl BlockClient {
    /// Connects to what an `nbd+unix://` or `nbd://` URI names.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the export.
    ///
    /// # Panics
    /// When the URI is neither of the two.
    pub fn connect(uri: &str) -> io::Result<Self> {
        let (stream, export) = dial(uri)?;
        Self::negotiate(stream, &export)
    }

    /// Negotiates over a connection that was just made.
    ///
    /// # Errors
    /// When the server does not answer as the protocol says, or refuses.
    pub fn negotiate(mut stream: Box<dyn Stream>, export: &str) -> io::Result<Self> {
        stream.deadline(ANSWER_DEADLINE)?;
        greet(stream.as_mut())?;
        let name_len = u32::try_from(export.len()).expect("export names are short");
        let mut data = name_len.to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0u16.to_be_bytes());
        send_option(stream.as_mut(), OPT_GO, &data)?;
        let mut told = None;
        loop {
            let (kind, data) = receive_option_reply(stream.as_mut(), OPT_GO)?;
            match kind {
                REP_ACK => break,
                REP_INFO => told = export_info(&data).or(told),
                other => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("NBD_OPT_GO answered {other:#x}: {text}")));
                }
            }
        }
        let (size_bytes, flags) =
            told.ok_or_else(|| io::Error::other("no NBD_INFO_EXPORT before the end"))?;
        Ok(Self { stream, in_flight: HashMap::new(), next_cookie: 1, size_bytes, flags })
    }

    /// Sends a command; its answer comes from [`Self::complete`].
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn submit(&mut self, command: &Command) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (offset, len) = command.range();
        let wire_len = u32::try_from(len).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let mut frame = request(command.flags(), command.code(), cookie, offset, wire_len);
        if let Command::Write { data, .. } = command {
            frame.extend_from_slice(data);
        }
        self.stream.write_all(&frame)?;
        let expected = if matches!(command, Command::Read { .. }) { len } else { 0 };
        self.in_flight.insert(cookie, expected);
        Ok(cookie)
    }

    /// The next answer, whichever command it is for.
    ///
    /// # Errors
    /// When the connection is broken, or the answer is not one.
    pub fn complete(&mut self) -> io::Result<Completion> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let (magic, error, cookie) = (be32(&head, 0), be32(&head, 4), be64(&head, 8));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(io::Error::other(format!("expected a simple reply, found {magic:#010x}")));
        }
        let expected = self
            .in_flight
            .remove(&cookie)
            .ok_or_else(|| io::Error::other(format!("an answer to {cookie}, which was not asked")))?;
        if error != 0 {
            let errno = i32::try_from(error).map_err(io::Error::other)?;
            return Ok(Completion { cookie, result: Err(io::Error::from_raw_os_error(errno)) });
        }
        let mut data = vec![0; expected];
        self.stream.read_exact(&mut data)?;
        Ok(Completion { cookie, result: Ok(data) })
    }

    /// How many commands wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// One command and its answer.
    ///
    /// # Errors
    /// When the connection is broken, or the volume answers an error.
    ///
    /// # Panics
    /// When other commands are in flight.
    pub fn call(&mut self, command: &Command) -> io::Result<Vec<u8>> {
        assert_eq!(self.in_flight(), 0, "call() is for one command at a time");
        self.submit(command)?;
        self.complete()?.result
    }

    /// Bytes from there.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.call(&Command::Read { offset, len })
    }
    /// Bytes to there.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(&Command::Write { offset, data: data.to_vec(), fua: false }).map(drop)
    }
    /// Bytes to there, on stable storage.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(&Command::Write { offset, data: data.to_vec(), fua: true }).map(drop)
    }
    /// Everything acknowledged to stable storage.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(&Command::Flush).map(drop)
    }
    /// The range is not needed any more.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn trim(&mut self, offset: u64, len: usize) -> io::Result<()> {
        self.call(&Command::Trim { offset, len }).map(drop)
    }
    /// Zeros there.
    ///
    /// # Errors
    /// See [`Self::call`].
    pub fn write_zeroes(&mut self, offset: u64, len: usize, no_hole: bool) -> io::Result<()> {
        self.call(&Command::WriteZeroes { offset, len, no_hole }).map(drop)
    }
    /// The connection itself, for what no honest client sends.
    pub fn raw(&mut self) -> &mut dyn Stream {
        self.stream.as_mut()
    }
}

/// The bytes of a request's header.
#[must_use]
pub fn request(flags: u16, code: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut frame = REQUEST_MAGIC.to_be_bytes().to_vec();
    frame.extend_from_slice(&flags.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(&cookie.to_be_bytes());
    frame.extend_from_slice(&offset.to_be_bytes());
    frame.extend_from_slice(&len.to_be_bytes());
    frame
}

/// Connects to what a URI names, and tells the export.
///
/// # Errors
/// When nobody answers.
///
/// # Panics
/// When it is no NBD URI.
pub fn dial(uri: &str) -> io::Result<(Box<dyn Stream>, String)> {
    if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
        let (export, socket) = rest.split_once("?socket=").unwrap_or_else(|| panic!("no socket in {uri}"));
        return Ok((Box::new(UnixStream::connect(Path::new(socket))?), export.to_owned()));
    }
    let rest = uri.strip_prefix("nbd://").unwrap_or_else(|| panic!("{uri} is no NBD URI"));
    let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok((Box::new(stream), export.to_owned()))
}

/// Reads the server's greeting and answers with fixed newstyle, no zeroes.
///
/// # Errors
/// When it is no NBD server.
pub fn greet(stream: &mut dyn Stream) -> io::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..8] != b"NBDMAGIC" || be64(&greeting, 8) != OPTION_MAGIC || greeting[17] & 1 == 0 {
        return Err(io::Error::other(format!("not a fixed newstyle greeting: {greeting:?}")));
    }
    stream.write_all(&3u32.to_be_bytes())
}

/// Sends one option of the negotiation.
///
/// # Errors
/// When the connection is broken.
pub fn send_option(stream: &mut dyn Stream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut frame = OPTION_MAGIC.to_be_bytes().to_vec();
    frame.extend_from_slice(&option.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes());
    frame.extend_from_slice(data);
    stream.write_all(&frame)
}

/// One reply of the negotiation: its type, and what it carries.
///
/// # Errors
/// When it is no reply to `option`, or too long to be honest.
pub fn receive_option_reply(stream: &mut dyn Stream, option: u32) -> io::Result<(u32, Vec<u8>)> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let (magic, echoed, kind, len) = (be64(&head, 0), be32(&head, 8), be32(&head, 12), be32(&head, 16));
    if magic != REPLY_MAGIC || echoed != option || len > 1 << 16 {
        return Err(io::Error::other(format!("not a reply to option {option}: {head:?}")));
    }
    let mut data = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let kind = u16::from_be_bytes(data.get(..2)?.try_into().ok()?);
    let size = u64::from_be_bytes(data.get(2..10)?.try_into().ok()?);
    let flags = u16::from_be_bytes(data.get(10..12)?.try_into().ok()?);
    (kind == INFO_EXPORT).then_some((size, flags))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
