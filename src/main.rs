//! `tonk-relay`: arguments in, exit code out. The program is the library beside this file.

use std::process::ExitCode;

fn main() -> ExitCode {
    tonk_relay::cli::run()
}
