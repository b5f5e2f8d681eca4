//! `tonk-relay.toml`(5).

use roff::{Roff, bold, roman};

use super::{
    compare,
    page::{inline, section, title, verbatim},
};

#[test]
fn manual_of_the_config() {
    let text = include_str!("../../etc/tonk-relay.toml");
    let mut roff = Roff::new();
    title(&mut roff, "tonk-relay.toml", "5", "File Formats");
    section(&mut roff, "NAME", &[("", "tonk-relay.toml - configuration of tonk-relay")]);
    section(&mut roff, "DESCRIPTION", CONFIG);
    section(&mut roff, "VALUES", VALUES);
    // Comments are collected until the key that they describe.
    let (mut about, mut keys) = (Vec::<&str>::new(), 0);
    for line in text.lines().skip_while(|line| !line.trim().is_empty()) {
        if let Some(name) = line.strip_prefix('[') {
            roff.control("SH", [format!("[{}]", name.trim_end_matches(']')).as_str()]);
            // What stands before it is about all of its keys.
            roff.text(inline(&about.join(" ")));
            about.clear();
        } else if let Some(comment) = line.strip_prefix("# ") {
            about.push(comment);
        } else if let Some(key) = line.strip_prefix('#').filter(|key| key.contains(" = ")) {
            if keys == 0 {
                roff.control("SH", ["TOP LEVEL"]);
                roff.text([roman("These keys come before the first section.")]);
            }
            keys += 1;
            let (key, needs_restart) = match key.split_once("  # (R)") {
                Some((key, _)) => (key, " Needs a restart."),
                None => (key, ""),
            };
            roff.control("TP", []);
            roff.text([bold(key.trim())]);
            assert!(!about.is_empty(), "{key} is not explained");
            roff.text(inline(&format!("{}{needs_restart}", about.join(" "))));
            about.clear();
        }
    }
    assert!(keys > 30, "the file is understood");
    roff.control("SH", ["EXAMPLES"]);
    roff.text([roman("Both files are in /usr/share/doc/tonk-relay/examples.")]);
    for (heading, text) in [
        ("A small relay", include_str!("../../etc/examples/small.toml")),
        ("A large relay", include_str!("../../etc/examples/large.toml")),
    ] {
        roff.control("SS", [heading]);
        verbatim(&mut roff, text);
    }
    section(&mut roff, "SEE ALSO", &[("", "`tonk-relay`(8)")]);
    compare("man/tonk-relay.toml.5", roff.to_roff().as_bytes());
}

const CONFIG: &[(&str, &str)] = &[
    (
        "",
        "The config is a TOML file. A key that is missing has its default, which is shown here. An \
         unknown key, a wrong type or a wrong value is an error that names file, line and key: \
         `tonk-relay --check-config` prints all of them, and `tonk-relay --print-config` prints \
         what is in effect.",
    ),
    (
        "",
        "`systemctl reload tonk-relay` applies a changed file, either all of it or nothing. A \
         reload that changes a key that needs a restart is refused, and names the key.",
    ),
];

const VALUES: &[(&str, &str)] = &[
    ("Durations", "\"20ms\", \"5s\", \"10m\", \"12h\" or \"30d\", in quotes."),
    (
        "Sizes",
        "\"8MiB\" (powers of 1,024) or \"100MB\" (powers of 1,000), in quotes; \"1B\" is one byte.",
    ),
    (
        "Rates",
        "\"20/s\", \"600/m\" or \"1000/h\", and \"20MiB/s\" for bytes, in quotes. All that a \
         minute or an hour allows may be used at once, and twice what a second allows.",
    ),
    ("Shares", "\"25%\", in quotes: of one core, or of the memory that the relay may use."),
    ("Numbers", "5000 or 5_000, without quotes."),
    (
        "Addresses",
        "\"127.0.0.1:8081\" or \"[::1]:8081\", with a port; \"0.0.0.0:8081\" and \"[::]:8081\" are \
         all addresses of the machine. In `admin.listen` also \"unix:/path/of/socket\".",
    ),
    ("Files and folders", "absolute paths."),
];
