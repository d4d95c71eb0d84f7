//! The handshake: fixed newstyle, one export. A pure state machine, and a driver over tokio's traits.
//!
//! The machine says how many bytes it wants next and gets just those, so that nothing of the transmission phase is
//! ever read here and the socket can move to the data thread. All lengths are bounded before they are believed.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::proto::{self, BadMagic, Fields, OptionHeader, info, option, rep, transmission};

/// Longest option that is looked at. The specification asks for names of up to 4096 bytes; the rest is room for
/// queries of metadata contexts.
const OPTION_BYTES_MAX: u32 = 16 * 1024;
/// Longest option that is skipped and refused; beyond it, the client is dropped.
const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options one client may send; clients in use send fewer than ten.
const OPTIONS_MAX: usize = 128;

/// What is offered: the one volume of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The volume's name. A client that asks for the empty name gets it too.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// A multiple of 4096.
    pub size_bytes: u64,
}

/// What a client and we have agreed on for the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// Reads are answered in chunks.
    pub structured_replies: bool,
    /// The client may ask for the allocation map. Implies structured replies.
    pub base_allocation: bool,
}

/// Why a handshake failed; the connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed, or ended in the middle of a message.
    #[error("handshake: connection failed: {0}")]
    Io(#[from] io::Error),
    /// The client does not speak this protocol.
    #[error("handshake: {0}")]
    Magic(#[from] BadMagic),
    /// The client set flags that were not offered.
    #[error("handshake: client flags: expected none beyond 0x3, found {found:#x}")]
    ClientFlags {
        /// All it set.
        found: u32,
    },
    /// An option is longer than any that makes sense.
    #[error("handshake: option {option}: expected at most {OPTION_SKIP_BYTES_MAX} bytes, found {len}")]
    OptionTooLong {
        /// Which.
        option: u32,
        /// Its claimed length.
        len: u32,
    },
    /// The client goes on and on.
    #[error("handshake: more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// `EXPORT_NAME` named another export, and knows no error reply.
    #[error("handshake: unknown export {name:?}")]
    UnknownExport {
        /// What it asked for, shortened.
        name: String,
    },
}

/// What follows a message of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More of the handshake.
    More,
    /// The transmission phase.
    Ready(Negotiated),
    /// Nothing: the client is done.
    Ended,
}

#[derive(Debug, Clone, Copy)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData { option: u32, len: u32 },
    OptionSkip { option: u32, left: u32 },
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct Handshake<'e> {
    export: &'e ExportInfo,
    state: State,
    negotiated: Negotiated,
    pad_export_name: bool,
    options: usize,
}

impl<'e> Handshake<'e> {
    /// Starts, and appends the greeting to `out`.
    pub fn start(export: &'e ExportInfo, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&proto::GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES).to_be_bytes());
        let negotiated = Negotiated::default();
        Self { export, state: State::ClientFlags, negotiated, pad_export_name: true, options: 0 }
    }

    /// How many bytes [`Handshake::advance`] needs; never 0, at most 16 KiB.
    #[must_use]
    pub fn wants(&self) -> usize {
        let bytes = match self.state {
            State::ClientFlags => 4,
            State::OptionHeader => return proto::OPTION_BYTES,
            State::OptionData { len, .. } => len,
            State::OptionSkip { left, .. } => left.min(OPTION_BYTES_MAX),
        };
        usize::try_from(bytes).expect("at most OPTION_BYTES_MAX")
    }

    /// A connection that ends here ends between two messages.
    #[must_use]
    pub fn between_messages(&self) -> bool {
        matches!(self.state, State::ClientFlags | State::OptionHeader)
    }

    /// Takes the next bytes and appends what is to be sent to `out`. Panics unless there are as many as wanted.
    pub fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        assert_eq!(input.len(), self.wants(), "the handshake gets just what it wants");
        let mut fields = Fields::new(input);
        match self.state {
            State::ClientFlags => self.client_flags(fields.u32().unwrap_or_default()),
            State::OptionHeader => {
                let bytes = input.try_into().expect("as many as wanted");
                self.option_header(OptionHeader::parse(bytes)?, out)
            }
            State::OptionData { option, .. } => {
                self.state = State::OptionHeader;
                self.option(option, input, out)
            }
            State::OptionSkip { option, left } => {
                let left = left - left.min(OPTION_BYTES_MAX);
                if left > 0 {
                    self.state = State::OptionSkip { option, left };
                } else {
                    self.state = State::OptionHeader;
                    proto::option_reply(out, option, rep::ERR_TOO_BIG, &[b"option too long"]);
                }
                Ok(Progress::More)
            }
        }
    }

    fn client_flags(&mut self, flags: u32) -> Result<Progress, HandshakeError> {
        let no_zeroes = u32::from(proto::FLAG_NO_ZEROES);
        if flags & !(no_zeroes | u32::from(proto::FLAG_FIXED_NEWSTYLE)) != 0 {
            return Err(HandshakeError::ClientFlags { found: flags });
        }
        self.pad_export_name = flags & no_zeroes == 0;
        self.state = State::OptionHeader;
        Ok(Progress::More)
    }

    fn option_header(&mut self, header: OptionHeader, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let OptionHeader { option, len } = header;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::TooManyOptions);
        }
        let no_error_reply = option == option::EXPORT_NAME;
        if len > OPTION_SKIP_BYTES_MAX || (no_error_reply && len > OPTION_BYTES_MAX) {
            return Err(HandshakeError::OptionTooLong { option, len });
        }
        if len > OPTION_BYTES_MAX {
            self.state = State::OptionSkip { option, left: len };
        } else if len > 0 {
            self.state = State::OptionData { option, len };
        } else {
            return self.option(option, &[], out);
        }
        Ok(Progress::More)
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let mut reply = |kind: u32, data: &[&[u8]]| proto::option_reply(out, option, kind, data);
        match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                reply(rep::ACK, &[]);
                return Ok(Progress::Ended);
            }
            option::LIST if data.is_empty() => {
                let name = self.export.name.as_bytes();
                reply(rep::SERVER, &[&length(name), name]);
                reply(rep::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.negotiated.structured_replies = true;
                reply(rep::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => reply(rep::ERR_INVALID, &[b"unexpected data"]),
            option::INFO | option::GO => return Ok(self.info(option, data, out)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data, out),
            // STARTTLS too: TLS is not offered.
            _ => reply(rep::ERR_UNSUP, &[]),
        }
        Ok(Progress::More)
    }

    fn is_our_export(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn transmission_flags(&self) -> u16 {
        let df = if self.negotiated.structured_replies { transmission::SEND_DF } else { 0 };
        transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_TRIM
            | transmission::SEND_WRITE_ZEROES
            | transmission::CAN_MULTI_CONN
            | df
    }

    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        if !self.is_our_export(name) {
            let name = String::from_utf8_lossy(name).chars().take(80).collect();
            return Err(HandshakeError::UnknownExport { name });
        }
        out.extend_from_slice(&self.export.size_bytes.to_be_bytes());
        out.extend_from_slice(&self.transmission_flags().to_be_bytes());
        if self.pad_export_name {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Progress::Ready(self.negotiated))
    }

    fn info(&self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Progress {
        let Some((name, wanted)) = parse_info(data) else {
            proto::option_reply(out, option, rep::ERR_INVALID, &[b"malformed request"]);
            return Progress::More;
        };
        if !self.is_our_export(name) {
            proto::option_reply(out, option, rep::ERR_UNKNOWN, &[b"no such export"]);
            return Progress::More;
        }
        let mut send = |kind: u16, first: &[u8], rest: &[u8]| {
            proto::option_reply(out, option, rep::INFO, &[&kind.to_be_bytes(), first, rest]);
        };
        let wants = |kind: u16| wanted.chunks_exact(2).any(|asked| asked == kind.to_be_bytes());
        send(info::EXPORT, &self.export.size_bytes.to_be_bytes(), &self.transmission_flags().to_be_bytes());
        if wants(info::NAME) {
            send(info::NAME, self.export.name.as_bytes(), &[]);
        }
        if wants(info::DESCRIPTION) && !self.export.description.is_empty() {
            send(info::DESCRIPTION, self.export.description.as_bytes(), &[]);
        }
        send(info::BLOCK_SIZE, &block_sizes(), &[]);
        proto::option_reply(out, option, rep::ACK, &[]);
        if option == option::GO { Progress::Ready(self.negotiated) } else { Progress::More }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let selecting = option == option::SET_META_CONTEXT;
        if selecting {
            // A selection replaces the one before it, even when it fails.
            self.negotiated.base_allocation = false;
        }
        let mut reply = |kind: u32, data: &[&[u8]]| proto::option_reply(out, option, kind, data);
        let Some(queries) = parse_queries(data) else {
            return reply(rep::ERR_INVALID, &[b"malformed request"]);
        };
        if !self.negotiated.structured_replies {
            return reply(rep::ERR_INVALID, &[b"structured replies come first"]);
        }
        if !self.is_our_export(queries.export) {
            return reply(rep::ERR_UNKNOWN, &[b"no such export"]);
        }
        // Listing without a query, or with just the namespace, lists all that there is.
        if queries.names_ours || (!selecting && (queries.count == 0 || queries.names_namespace)) {
            let id = if selecting { proto::BASE_ALLOCATION_ID } else { 0 };
            reply(rep::META_CONTEXT, &[&id.to_be_bytes(), proto::BASE_ALLOCATION]);
            self.negotiated.base_allocation |= selecting;
        }
        reply(rep::ACK, &[]);
    }
}

/// Minimum 1, preferred one block, maximum a request's limit.
fn block_sizes() -> [u8; 12] {
    let mut out = [0; 12];
    let sizes = [1, 4096, proto::REQUEST_BYTES_MAX];
    for (field, size) in out.chunks_exact_mut(4).zip(sizes) {
        field.copy_from_slice(&size.to_be_bytes());
    }
    out
}

fn length(name: &[u8]) -> [u8; 4] {
    u32::try_from(name.len()).expect("a volume's name is short").to_be_bytes()
}

/// The export's name, and the information asked for as 16-bit numbers.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let count = usize::from(fields.u16()?);
    let wanted = fields.bytes(count * 2)?;
    fields.is_empty().then_some((name, wanted))
}

struct Queries<'a> {
    export: &'a [u8],
    count: u32,
    names_ours: bool,
    names_namespace: bool,
}

fn parse_queries(data: &[u8]) -> Option<Queries<'_>> {
    let mut fields = Fields::new(data);
    let (export, count) = (fields.string()?, fields.u32()?);
    let mut queries = Queries { export, count, names_ours: false, names_namespace: false };
    // A wrong count ends with the data: each query takes at least 4 bytes of it.
    for _ in 0..count {
        let query = fields.string()?;
        queries.names_ours |= query == proto::BASE_ALLOCATION;
        queries.names_namespace |= query == b"base:";
    }
    fields.is_empty().then_some(queries)
}

/// Leads one client through the handshake. `None`: it only asked, and is done; an error ends the connection.
///
/// Reads not one byte of the transmission phase. Has no deadline of its own: the caller sets one, and may drop the
/// future at any point together with the stream.
pub async fn negotiate<S>(stream: &mut S, export: &ExportInfo) -> Result<Option<Negotiated>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut handshake = Handshake::start(export, &mut output);
    loop {
        stream.write_all(&output).await?;
        stream.flush().await?;
        output.clear();
        input.resize(handshake.wants(), 0);
        if !read_or_end(stream, &mut input, handshake.between_messages()).await? {
            return Ok(None);
        }
        match handshake.advance(&input, &mut output)? {
            Progress::More => {}
            Progress::Ready(negotiated) => {
                stream.write_all(&output).await?;
                stream.flush().await?;
                return Ok(Some(negotiated));
            }
            Progress::Ended => {
                // A client that aborts need not wait for the answer: whether it gets it does not matter.
                let _ = stream.write_all(&output).await;
                let _ = stream.flush().await;
                return Ok(None);
            }
        }
    }
}

/// Fills `input`; false: the stream ended before its first byte, where it may.
async fn read_or_end<S>(stream: &mut S, input: &mut [u8], may_end: bool) -> Result<bool, io::Error>
where
    S: AsyncRead + Unpin,
{
    let mut filled = 0;
    while filled < input.len() {
        match stream.read(&mut input[filled..]).await? {
            0 if filled == 0 && may_end => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(true)
}
