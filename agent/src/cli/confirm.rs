//! Asking before something is deleted: on a terminal, where an answer can be given; elsewhere the command line says it.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use holdfast_proto::status::ErrorKind;

use crate::complaint::Complaint;

/// What a command that deletes does where no terminal can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// It goes on: what it deletes can be brought back.
    GoesOn,
    /// It wants `--yes`.
    WantsYes,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Go,
    Ask,
    Refuse,
}

fn step(yes: bool, terminal: bool, elsewhere: Elsewhere) -> Step {
    match (yes, terminal, elsewhere) {
        (true, ..) | (false, false, Elsewhere::GoesOn) => Step::Go,
        (false, true, _) => Step::Ask,
        (false, false, Elsewhere::WantsYes) => Step::Refuse,
    }
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

/// Returns where it may be done. `what` says what would be done, as a sentence without its full stop.
///
/// # Errors
/// `Unconfirmed` where the answer is no, or no terminal can answer and `--yes` is missing.
pub(super) fn confirm(what: &str, yes: bool, elsewhere: Elsewhere) -> Result<(), Complaint> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    match step(yes, terminal, elsewhere) {
        Step::Go => Ok(()),
        Step::Ask => {
            let mut answer = String::new();
            let asked = write!(io::stderr(), "{what}. Go on? [y/N] ").and_then(|()| io::stderr().flush());
            asked
                .and_then(|()| io::stdin().lock().read_line(&mut answer))
                .map_err(|error| Complaint::failed(format!("failed to ask on the terminal: {error}")))?;
            if is_yes(&answer) {
                return Ok(());
            }
            Err(Complaint::new(ErrorKind::Unconfirmed, "nothing was changed: the answer was not yes"))
        }
        Step::Refuse => Err(Complaint::new(ErrorKind::Unconfirmed, what)
            .remedy("nothing was changed; if it is really meant, repeat this with --yes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_asked_and_elsewhere_yes_is_wanted() {
        for (yes, terminal, elsewhere, expected) in [
            (true, true, Elsewhere::WantsYes, Step::Go),
            (true, false, Elsewhere::WantsYes, Step::Go),
            (false, true, Elsewhere::WantsYes, Step::Ask),
            (false, true, Elsewhere::GoesOn, Step::Ask),
            (false, false, Elsewhere::WantsYes, Step::Refuse),
            (false, false, Elsewhere::GoesOn, Step::Go),
        ] {
            assert_eq!(step(yes, terminal, elsewhere), expected, "{yes} {terminal} {elsewhere:?}");
        }
    }

    #[test]
    fn only_yes_is_yes() {
        assert!(["y", "Y\n", " yes ", "YES"].into_iter().all(is_yes));
        assert!(!["", "\n", "n", "no", "yess", "ja"].into_iter().any(is_yes));
    }
}
