//! How a command ends: exit codes in the three conventions there are, and the JSON envelope.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use thiserror::Error;

/// Version of the JSON envelope and of what is in it.
const JSON_SCHEMA: u32 = 1;

/// Why a command failed, as one sentence and the kind that decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Failure {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Who calls may not do that.
    #[error("{0}")]
    Denied(String),
    /// The system did not give what was needed: a process, a file, a device.
    #[error("{0}")]
    System(String),
    /// The pool is not in a state for it, or mounting it failed.
    #[error("{0}")]
    Failed(String),
    /// A mistake in mendfs.
    #[error("{0}; this is a mistake in mendfs")]
    Internal(String),
}

impl Failure {
    /// A number for each kind, for the way from the serving process to the one that waits.
    pub(super) const fn tag(&self) -> u8 {
        match self {
            Failure::Usage(_) => b'u',
            Failure::Denied(_) => b'd',
            Failure::System(_) => b's',
            Failure::Failed(_) => b'f',
            Failure::Internal(_) => b'i',
        }
    }

    /// The message alone.
    pub(super) fn message(&self) -> &str {
        match self {
            Failure::Usage(message)
            | Failure::Denied(message)
            | Failure::System(message)
            | Failure::Failed(message)
            | Failure::Internal(message) => message,
        }
    }

    /// The failure with that [`Failure::tag`].
    pub(super) fn from_tag(tag: u8, message: String) -> Failure {
        match tag {
            b'u' => Failure::Usage(message),
            b'd' => Failure::Denied(message),
            b's' => Failure::System(message),
            b'f' => Failure::Failed(message),
            _ => Failure::Internal(message),
        }
    }
}

/// Whose exit codes a command keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention {
    /// Ours: 0 fine, 1 failed or not healthy, 2 usage.
    Command,
    /// mount(8) and umount(8): 1 usage or permissions, 2 system, 4 internal, 32 failed.
    Mount,
    /// fsck(8): 8 operational error, 16 usage.
    Fsck,
}

impl Convention {
    /// For a command line that does not parse.
    pub(super) fn usage(self) -> ExitCode {
        self.failure(&Failure::Usage(String::new()))
    }

    /// For a command that failed.
    pub(super) fn failure(self, failure: &Failure) -> ExitCode {
        ExitCode::from(self.code(failure))
    }

    fn code(self, failure: &Failure) -> u8 {
        match (self, failure) {
            (Convention::Command, Failure::Usage(_)) => 2,
            (Convention::Command, _) => 1,
            (Convention::Mount, Failure::Usage(_) | Failure::Denied(_)) => 1,
            (Convention::Mount, Failure::System(_)) => 2,
            (Convention::Mount, Failure::Internal(_)) => 4,
            (Convention::Mount, Failure::Failed(_)) => 32,
            (Convention::Fsck, Failure::Usage(_)) => 16,
            (Convention::Fsck, _) => 8,
        }
    }
}

/// Prints `body` in the envelope that all commands share: the object's fields beside "schema" and
/// "command" under the one key "mendfs".
pub(super) fn print_json(command: &str, body: &impl Serialize) -> Result<(), Failure> {
    let mut fields = serde_json::to_value(body)
        .map_err(|error| Failure::Internal(format!("status does not become JSON: {error}")))?;
    let Some(map) = fields.as_object_mut() else {
        return Err(Failure::Internal(
            "the body of a JSON report is not an object".to_owned(),
        ));
    };
    map.entry("schema").or_insert(json!(JSON_SCHEMA));
    map.insert("command".to_owned(), json!(command));
    print_text(&format!("{:#}\n", json!({ "mendfs": fields })))
}

/// Prints to stdout. A reader that has gone away, as `head` does, is not an error.
pub(super) fn print_text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::System(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manuals() {
        let usage = Failure::Usage(String::new());
        let denied = Failure::Denied(String::new());
        let system = Failure::System(String::new());
        let failed = Failure::Failed(String::new());
        let internal = Failure::Internal(String::new());
        for (convention, codes) in [
            (Convention::Command, [2, 1, 1, 1, 1]),
            (Convention::Mount, [1, 1, 2, 32, 4]),
            (Convention::Fsck, [16, 8, 8, 8, 8]),
        ] {
            let found = [&usage, &denied, &system, &failed, &internal].map(|f| convention.code(f));
            assert_eq!(found, codes, "{convention:?}");
        }
    }

    #[test]
    fn a_failure_survives_its_way_through_a_pipe() {
        for failure in [
            Failure::Usage("a".to_owned()),
            Failure::Denied("e".to_owned()),
            Failure::System("b".to_owned()),
            Failure::Failed("c".to_owned()),
            Failure::Internal("d".to_owned()),
        ] {
            let back = Failure::from_tag(failure.tag(), failure.message().to_owned());
            assert_eq!(back, failure);
        }
    }
}
