//! Users of this machine, and working with the rights of one.

#![allow(clippy::disallowed_methods, reason = "for commands")]

use std::{io, process::Command, thread};

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// A user of this machine.
#[derive(Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    uid: Uid,
    /// Its own group first.
    groups: Vec<Gid>,
}

impl User {
    /// Finds a user by its name or number.
    pub fn find(name: &str) -> Option<Self> {
        let id = |option: &str| output_of(Command::new("id").args([option, "--", name]));
        let uid = numbers(&id("-u")?).next().map(Uid::from_raw)?;
        let groups = numbers(&id("-G")?).map(Gid::from_raw).collect();
        let name = id("-un").map_or_else(|| name.to_owned(), |name| name.trim().to_owned());
        Some(Self { name, uid, groups })
    }

    /// Makes a group its own.
    ///
    /// # Errors
    /// The group does not exist.
    pub fn set_group(&mut self, group: &str) -> Result<(), NoGroup> {
        self.groups.insert(0, gid(group)?);
        Ok(())
    }

    /// Adds a group.
    ///
    /// # Errors
    /// The group does not exist.
    pub fn add_group(&mut self, group: &str) -> Result<(), NoGroup> {
        self.groups.push(gid(group)?);
        Ok(())
    }

    /// Runs `work` in a thread with the user's rights. Root may do so.
    ///
    /// # Errors
    /// The thread cannot be started, or cannot take these rights.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let as_user = || -> io::Result<T> {
            // The system calls change this thread only. The C library would change the process.
            let group = self.groups.first().copied();
            set_thread_groups(&self.groups)?;
            set_thread_res_gid(group, group, group)?;
            set_thread_res_uid(self.uid, self.uid, self.uid)?;
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, as_user)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A group that does not exist, by its name.
#[derive(Debug, thiserror::Error)]
#[error("group {0}")]
pub struct NoGroup(String);

/// Returns the output of a program, or `None` if it does not exist or fails.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split_whitespace().filter_map(|word| word.parse().ok())
}

fn gid(group: &str) -> Result<Gid, NoGroup> {
    let entry = output_of(Command::new("getent").args(["group", group]));
    let number = entry.and_then(|entry| entry.split(':').nth(2)?.trim().parse().ok());
    number.map(Gid::from_raw).ok_or_else(|| NoGroup(group.to_owned()))
}
