//! Reading and writing little-endian fields of bounded byte strings. Every read is checked.

use uuid::Uuid;

/// The bytes ended before the field did, or the field holds what its type does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct FieldError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Takes fields off the front of a byte string.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their beginning.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }
    /// What was not taken yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }
    /// The next `n` bytes.
    pub fn take(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], FieldError> {
        match self.bytes.split_at_checked(n) {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(head)
            }
            None => {
                Err(FieldError { field, problem: format!("expected {n} bytes, found {}", self.bytes.len()) })
            }
        }
    }
    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FieldError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }
    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, FieldError> {
        self.array::<1>(field).map(|[b]| b)
    }
    /// Two bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, FieldError> {
        self.array(field).map(u16::from_le_bytes)
    }
    /// Four bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, FieldError> {
        self.array(field).map(u32::from_le_bytes)
    }
    /// Eight bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, FieldError> {
        self.array(field).map(u64::from_le_bytes)
    }
    /// 0 or 1.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, FieldError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(FieldError { field, problem: format!("expected 0 or 1, found {other}") }),
        }
    }
    /// Sixteen bytes in the order of the text form.
    pub fn uuid(&mut self, field: &'static str) -> Result<Uuid, FieldError> {
        self.array(field).map(Uuid::from_bytes)
    }
    /// A `u16` length, then that many bytes of UTF-8; refused when longer than `max`.
    pub fn text(&mut self, field: &'static str, max: usize) -> Result<&'a str, FieldError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(FieldError { field, problem: format!("expected at most {max} bytes, found {len}") });
        }
        std::str::from_utf8(self.take(field, len)?)
            .map_err(|_| FieldError { field, problem: "expected UTF-8".to_owned() })
    }
}

/// Appends fields to a byte string.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins an empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
    /// What was written so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// As they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }
    /// One byte.
    pub fn u8(&mut self, n: u8) -> &mut Self {
        self.raw(&[n])
    }
    /// Two bytes.
    pub fn u16(&mut self, n: u16) -> &mut Self {
        self.raw(&n.to_le_bytes())
    }
    /// Four bytes.
    pub fn u32(&mut self, n: u32) -> &mut Self {
        self.raw(&n.to_le_bytes())
    }
    /// Eight bytes.
    pub fn u64(&mut self, n: u64) -> &mut Self {
        self.raw(&n.to_le_bytes())
    }
    /// 0 or 1.
    pub fn bool(&mut self, b: bool) -> &mut Self {
        self.u8(u8::from(b))
    }
    /// Sixteen bytes in the order of the text form.
    pub fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        self.raw(uuid.as_bytes())
    }
    /// A `u16` length, then the bytes. What is longer than a `u16` can say is cut at a character boundary.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let end = text.floor_char_boundary(usize::from(u16::MAX));
        let cut = &text[..end];
        self.u16(u16::try_from(cut.len()).unwrap_or(u16::MAX)).raw(cut.as_bytes())
    }
}
