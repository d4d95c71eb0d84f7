//! A small NBD client that knows when each answer came, and connects again where fio would give up.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Longer than any time-out of the product: an answer that takes longer is a hang.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// What one request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of bytes there.
    Read,
    /// Of bytes to there.
    Write,
    /// Of bytes there, which are given back.
    Trim,
}

/// One connection, ready for requests.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    frame: Vec<u8>,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Client {
    /// Connects to an `nbd+unix:///EXPORT?socket=PATH`.
    ///
    /// # Errors
    /// When nobody is there, or it does not serve.
    pub(super) fn connect(uri: &str) -> io::Result<Self> {
        let (export, socket) = uri
            .strip_prefix("nbd+unix:///")
            .and_then(|rest| rest.split_once("?socket="))
            .ok_or_else(|| wrong("expected nbd+unix:///EXPORT?socket=PATH"))?;
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..8] != b"NBDMAGIC" || &greeting[8..16] != OPTION_MAGIC {
            return Err(wrong("the server's greeting is not NBD's"));
        }
        let name_len = u32::try_from(export.len()).map_err(|_| wrong("the export's name is too long"))?;
        let mut hello = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend_from_slice(OPTION_MAGIC);
        hello.extend_from_slice(&OPT_GO.to_be_bytes());
        hello.extend_from_slice(&(name_len + 6).to_be_bytes());
        hello.extend_from_slice(&name_len.to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&[0, 0]);
        stream.write_all(&hello)?;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let (kind, len) = (word(&head, 12), word(&head, 16));
            io::copy(&mut (&mut stream).take(u64::from(len)), &mut io::sink())?;
            match kind {
                REP_ACK => return Ok(Self { stream, frame: Vec::new() }),
                REP_INFO => {}
                _ => return Err(wrong("the server refuses the export")),
            }
        }
    }

    /// Sends one request; `data` is what is written, or as long as what is read.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn send(&mut self, kind: Kind, cookie: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| wrong("the request is too long"))?;
        self.ask(kind, cookie, offset, len, data)
    }

    fn ask(&mut self, kind: Kind, cookie: u64, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        let code: u32 = match kind {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Trim => 4,
        };
        self.frame.clear();
        self.frame.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.frame.extend_from_slice(&code.to_be_bytes());
        self.frame.extend_from_slice(&cookie.to_be_bytes());
        self.frame.extend_from_slice(&offset.to_be_bytes());
        self.frame.extend_from_slice(&len.to_be_bytes());
        if kind == Kind::Write {
            self.frame.extend_from_slice(data);
        }
        self.stream.write_all(&self.frame)
    }

    /// The cookie of the next answer. `kind_of` tells which request it is for; what was read is thrown away.
    ///
    /// # Errors
    /// When the connection is broken, or the request failed.
    pub(super) fn answer(&mut self, scratch: &mut [u8], kind_of: impl Fn(u64) -> Kind) -> io::Result<u64> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if word(&head, 0) != REPLY_MAGIC {
            return Err(wrong("the server's answer is no simple reply"));
        }
        let error = word(&head, 4);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(i32::MAX)));
        }
        let cookie = u64::from(word(&head, 8)) << 32 | u64::from(word(&head, 12));
        if kind_of(cookie) == Kind::Read {
            self.stream.read_exact(scratch)?;
        }
        Ok(cookie)
    }

    /// Gives a range back, and waits for the answer.
    ///
    /// # Errors
    /// When the connection is broken, or the request failed.
    pub(super) fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.ask(Kind::Trim, 0, offset, len, &[])?;
        self.answer(&mut [], |_| Kind::Trim).map(drop)
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// As the two.
    pub(super) fn call(&mut self, kind: Kind, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.send(kind, 0, offset, data)?;
        self.answer(data, |_| kind).map(drop)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_be_bytes)
}
