//! Exec and attach: a program in a container, or a container's own streams, for somebody far away.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::channels::{Channels, Input, Output};
use crate::descriptor::{Descriptor, terminal};
use crate::endpoint::parameters;
use crate::protocol::{PodDir, Record, RunState, read_json};
use crate::sandbox::{self, Session};

/// Which streams are asked for, in a kubelet's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal: bool,
}

impl Streams {
    /// From a query; none at all is an error, whose text is a kubelet's.
    pub fn parse(query: &str) -> Result<Streams, &'static str> {
        let flag =
            |name| parameters(query, name).first().is_some_and(|value| value == "1" || value == "true");
        let terminal = flag("tty");
        let streams = Streams {
            stdin: flag("input"),
            stdout: flag("output"),
            // A terminal has one stream for both.
            stderr: flag("error") && !terminal,
            terminal,
        };
        if !streams.stdin && !streams.stdout && !streams.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr");
        }
        Ok(streams)
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub dir: PodDir,
    /// The pod as a kubelet names it: `NAME_NAMESPACE`.
    pub pod: String,
    pub container: String,
    /// Without one, the container's own streams.
    pub command: Option<Vec<String>>,
    pub streams: Result<Streams, &'static str>,
}

impl Asked {
    /// Why it can't be done, in a kubelet's words.
    pub fn impossible(&self) -> Option<String> {
        let record = read_json::<Record>(&self.dir.record(&self.container)).ok().flatten();
        let runs = record.is_some_and(|record| matches!(record.state, RunState::Running(_)))
            && sandbox::find(&self.dir).is_some();
        (!runs).then(|| match self.command {
            Some(_) => format!("container not found ({:?})", self.container),
            None => format!("container {} not found in pod {}", self.container, self.pod),
        })
    }
}

/// A session's result as a `Status`, which kubectl turns into its own exit status.
pub(crate) fn status(result: &Result<i32, String>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(problem) => {
            let problem = format!("error executing command in container: {problem}");
            json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {problem}"),
                "details": {"causes": [{"message": problem}]},
            })
        }
    }
}

/// Our ends of a program's streams.
struct Ends {
    stdin: Option<Descriptor>,
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
    /// Whether all of them are one terminal, which is ours to size.
    terminal: bool,
}

/// Makes the streams of a program: our ends, and its own.
fn open(streams: Streams, with_terminal: bool) -> io::Result<(Ends, [OwnedFd; 3])> {
    if with_terminal {
        let (ours, theirs) = terminal()?;
        let input = Descriptor::new(ours.try_clone()?)?;
        let output = Descriptor::new(ours)?;
        let inner = [theirs.try_clone()?, theirs.try_clone()?, theirs];
        return Ok((Ends { stdin: Some(input), stdout: Some(output), stderr: None, terminal: true }, inner));
    }
    let nothing = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let (stdin_end, stdin) = if streams.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (read, Some(Descriptor::new(write)?))
    } else {
        (nothing()?, None)
    };
    let output = |wanted: bool| -> io::Result<(Option<Descriptor>, OwnedFd)> {
        if !wanted {
            return Ok((None, nothing()?));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Some(Descriptor::new(read)?), write))
    };
    let (stdout, stdout_end) = output(streams.stdout)?;
    let (stderr, stderr_end) = output(streams.stderr)?;
    Ok((Ends { stdin, stdout, stderr, terminal: false }, [stdin_end, stdout_end, stderr_end]))
}

/// Runs a session to its end, or until the client is gone: then the program ends, too.
pub(crate) async fn run(asked: Asked, streams: Streams, channels: Channels) {
    let attached = asked.command.is_none();
    let Channels { input, output } = channels;
    let result = match open(streams, streams.terminal && !attached) {
        Ok((ends, inner)) => {
            let terminal = ends.terminal;
            let begun =
                Session::begin(&asked.dir, &asked.container, asked.command.clone(), terminal, inner).await;
            match begun {
                Ok(session) => converse(session, ends, input, &output).await,
                Err(error) => Some(Err(error.to_string())),
            }
        }
        Err(error) => Some(Err(error.to_string())),
    };
    let Some(result) = result else { return };
    // Who attached has seen the end; how the container ended is in the pod's status.
    let result = if attached { result.map(|_| 0) } else { result };
    let _ = output.send(Output::Status(status(&result))).await;
}

/// Moves bytes both ways. `None` if the client has gone first.
async fn converse(
    mut session: Session,
    ends: Ends,
    mut input: mpsc::Receiver<Input>,
    output: &mpsc::Sender<Output>,
) -> Option<Result<i32, String>> {
    let Ends { mut stdin, stdout, stderr, terminal } = ends;
    let (over, ended) = tokio::sync::watch::channel(false);
    let mut tell = tokio::task::JoinSet::new();
    if let Some(end) = stdout {
        tell.spawn(show(end, Output::Stdout, output.clone(), ended.clone()));
    }
    if let Some(end) = stderr {
        tell.spawn(show(end, Output::Stderr, output.clone(), ended));
    }
    let result = loop {
        tokio::select! {
            result = session.ended() => break result,
            heard = input.recv() => match heard {
                Some(Input::Bytes(bytes)) => if let Some(end) = &stdin {
                    // A program that doesn't read must not keep us from noticing its end.
                    tokio::select! {
                        written = end.write_all(&bytes) => if written.is_err() { stdin = None },
                        result = session.ended() => break result,
                    }
                },
                // The end of what is typed is no end of a terminal.
                Some(Input::End) => if !terminal { stdin = None },
                Some(Input::Resize { rows, columns }) => match &stdin {
                    Some(end) if terminal => end.resize(rows, columns),
                    _ => drop(session.resize(rows, columns).await),
                },
                None => return None,
            },
        }
    };
    // What the program has written is all there now. Others that it has started may write on: they aren't waited for.
    let _ = over.send(true);
    while tell.join_next().await.is_some() {}
    Some(result)
}

/// Passes on what a program writes: until it closes, and once it has ended, what is there.
async fn show(
    end: Descriptor,
    wrap: fn(bytes::Bytes) -> Output,
    output: mpsc::Sender<Output>,
    mut ended: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        let bytes = tokio::select! {
            bytes = end.read() => bytes,
            _ = ended.wait_for(|ended| *ended) => match end.try_read() {
                Some(bytes) => bytes,
                None => return,
            },
        };
        if bytes.is_empty() || output.send(wrap(bytes.into())).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_the_streams() {
        let all = Streams { stdin: true, stdout: true, stderr: true, terminal: false };
        assert_eq!(Streams::parse("command=ls&input=1&output=1&error=1"), Ok(all));
        let terminal = Streams { stderr: false, terminal: true, ..all };
        assert_eq!(Streams::parse("input=1&output=1&error=1&tty=1"), Ok(terminal));
        assert!(Streams::parse("command=ls").is_err_and(|text| text.contains("at least 1 of")));
    }

    #[test]
    fn an_exit_status_is_told_as_kubectl_reads_it() {
        assert_eq!(status(&Ok(0))["status"], "Success");
        let failed = status(&Ok(102));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "102"}));
        let not_started = status(&Err("no such program".to_owned()));
        assert_eq!(not_started["reason"], "InternalError");
        assert!(not_started["message"].as_str().is_some_and(|text| text.ends_with("no such program")));
    }
}
