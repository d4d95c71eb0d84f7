//! What the command line says when it cannot do something: what failed, what kind of failure that is, and what a
//! person can do about it.

use std::fmt;

use holdfast_proto::status::ErrorKind;

/// A failure for a person to read; its kind decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What failed and why, in one or more lines.
    pub message: String,
    /// What to do about it, where that is known.
    pub remedy: Option<String>,
}

impl Complaint {
    /// A failure nobody has a remedy for.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: None }
    }
    /// [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }
    /// The same with what can be done about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  remedy: {remedy}"),
            None => Ok(()),
        }
    }
}
impl std::error::Error for Complaint {}
