//! `tonk-relay`: arguments in, exit code out. The program is the library beside this file.

use std::process::ExitCode;

/// TiKV's binding of jemalloc, which they keep up for their own servers: glibc's allocator kept all
/// of the memory of documents that had left. Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tonk_relay::cli::run()
}
