//! What is printed, and how: tables that fit a terminal, JSON for programs, complaints on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use holdfast_proto::status::ErrorKind;
use serde::Serialize;

use super::json::ErrorBody;
use crate::complaint::Complaint;

/// For whom to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// People.
    #[value(alias = "table")]
    Text,
    /// Programs.
    Json,
}

/// Standard output in the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    format: Format,
}

impl Out {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }
    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One value: JSON over several lines, or the text that `text` makes.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Complaint> {
        match self.format {
            Format::Text => write_out(text().trim_end().as_bytes(), true),
            Format::Json => {
                let json = serde_json::to_string_pretty(value).map_err(|error| unprintable(&error))?;
                write_out(json.as_bytes(), true)
            }
        }
    }

    /// One of many: JSON on a line of its own, or one line of text.
    pub(super) fn event<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Complaint> {
        match self.format {
            Format::Text => write_out(text().trim_end().as_bytes(), true),
            Format::Json => {
                let json = serde_json::to_string(value).map_err(|error| unprintable(&error))?;
                write_out(json.as_bytes(), true)
            }
        }
    }

    /// Bytes as they are.
    pub(super) fn raw(self, bytes: &[u8]) -> Result<(), Complaint> {
        write_out(bytes, false)
    }

    /// A hint for people that is no part of the answer.
    pub(super) fn hint(self, text: impl Display) {
        if self.format == Format::Text {
            drop(writeln!(io::stderr(), "{text}"));
        }
    }

    /// What went wrong: one or two lines, or `{"error": {...}}`.
    pub(super) fn complain(self, complaint: &Complaint) {
        let text = match self.format {
            Format::Text => format!("error: {complaint}"),
            Format::Json => {
                serde_json::to_string(&ErrorBody::from(complaint)).unwrap_or_else(|_| complaint.to_string())
            }
        };
        drop(writeln!(io::stderr(), "{text}"));
    }
}

fn unprintable(error: &serde_json::Error) -> Complaint {
    Complaint::failed(format!("failed to write JSON: {error}"))
}

/// A reader that has seen enough (`| head`) ends the program like any other filter; only commands that ask and print
/// come here, so that nothing is left half done.
fn write_out(bytes: &[u8], newline: bool) -> Result<(), Complaint> {
    let mut stdout = io::stdout().lock();
    let end: &[u8] = if newline { b"\n" } else { b"" };
    match stdout.write_all(bytes).and_then(|()| stdout.write_all(end)).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Complaint::new(ErrorKind::Failed, format!("failed to write the answer: {error}"))),
    }
}

/// A table without lines; wraps its cells to the width of a terminal, and not at all elsewhere.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.to_vec());
    }
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// `name  value` lines; empty values are left out.
pub(super) fn fields<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    pairs.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// What a table shows for nothing.
pub(super) fn dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "2".to_owned()]];
        let lines: Vec<String> =
            table(["NAME", "N"], rows).lines().map(|line| line.trim_end().to_owned()).collect();
        assert_eq!(lines, ["NAME    N", "a       1", "longer  2"]);
    }

    #[test]
    fn fields_line_up_and_skip_what_is_empty() {
        let text = fields([("a", "1".to_owned()), ("none", String::new()), ("name", "x".to_owned())]);
        assert_eq!(text, "a     1\nname  x\n");
        assert_eq!(dash(None::<u8>), "-");
    }
}
