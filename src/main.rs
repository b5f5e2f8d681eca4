//! `tonk-relay`: arguments in, exit code out. The program is the library beside this file.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tonk_relay::cli::run()
}
