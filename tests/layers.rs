//! The folders of `src` import downwards only, and no files import each other in a circle.

#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, Item, UseTree, visit::Visit};

/// The folders of `src`, lowest first: each may import those before it. `src/lib.rs` has the same
/// list for readers.
const LAYERS: [&str; 13] = [
    "base", "config", "observe", "limits", "auth", "document", "storage", "bundle", "sync", "http",
    "admin", "app", "cli",
];

/// Modules that are compiled for tests alone.
const TESTS: [&str; 3] = ["tests", "simulation", "conformance"];

/// A module by its path from the crate's root, such as `["sync", "wire"]`.
type Module = Vec<String>;

/// The modules that each module imports, except for tests.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Collects the paths in one file that begin with `crate`, `super` or `self`.
struct Paths {
    /// The module that is being read.
    file: Module,
    found: Vec<Module>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let mut base = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.file.clone(),
            _ => return,
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => _ = base.pop(),
                part => base.push(part.to_owned()),
            }
        }
        self.found.push(base);
    }

    fn add_tree(&mut self, tree: &UseTree, prefix: &mut Module) {
        let depth = prefix.len();
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(&path.tree, prefix);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(tree, prefix));
            }
            UseTree::Name(syn::UseName { ident })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                prefix.push(ident.to_string());
                self.add(prefix);
            }
            UseTree::Glob(_) => self.add(prefix),
        }
        prefix.truncate(depth);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        list.is_ok_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(module) if is_test(&module.attrs) => {}
            Item::Mod(module) => {
                self.file.push(module.ident.to_string());
                syn::visit::visit_item(self, item);
                self.file.pop();
            }
            Item::Use(item) => self.add_tree(&item.tree, &mut Vec::new()),
            item => syn::visit::visit_item(self, item),
        }
    }

    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(&path.segments.iter().map(|part| part.ident.to_string()).collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }
}

/// The files of a folder and its subfolders, by their modules.
fn files(folder: &Path, module: &Module, found: &mut BTreeMap<Module, PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is read") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let inner = [module.as_slice(), std::slice::from_ref(&name)].concat();
        match (path.is_dir(), name.as_str()) {
            (true, _) => files(&path, &inner, found),
            (false, "lib" | "main") => {}
            (false, "mod") => _ = found.insert(module.clone(), path),
            (false, _) if path.extension().is_some_and(|extension| extension == "rs") => {
                found.insert(inner, path);
            }
            (false, _) => {}
        }
    }
}

fn imports() -> Imports {
    let mut modules = BTreeMap::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    files(&source, &Vec::new(), &mut modules);
    modules.retain(|module, _| !module.iter().any(|part| TESTS.contains(&part.as_str())));
    let of = |(module, path): (&Module, &PathBuf)| {
        let text = fs::read_to_string(path).expect("reads");
        let mut paths = Paths { file: module.clone(), found: Vec::new() };
        paths.visit_file(&syn::parse_file(&text).expect("parses"));
        let to_module = |mut path: Module| {
            while !path.is_empty() && !modules.contains_key(&path) {
                path.pop();
            }
            Some(path).filter(|path| !path.is_empty() && path != module)
        };
        (module.clone(), paths.found.into_iter().filter_map(to_module).collect())
    };
    modules.iter().map(of).collect()
}

/// `document` only decides: it starts no tasks, and waits for nothing.
#[test]
fn documents_are_synchronized_without_tokio_and_without_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/document");
    let mut modules = BTreeMap::new();
    files(&folder, &Vec::new(), &mut modules);
    for path in modules.values() {
        let text = fs::read_to_string(path).expect("reads");
        let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found =
            code.find(|line| ["tokio", "std::fs", "async "].iter().any(|word| line.contains(word)));
        assert_eq!(found, None, "{}", path.display());
    }
}

#[test]
fn folders_import_downwards_only() {
    let layer = |module: &Module| {
        let place = LAYERS.iter().position(|layer| *layer == module[0]);
        place.unwrap_or_else(|| panic!("LAYERS lacks {}", module[0]))
    };
    for (module, imported) in imports() {
        for import in imported.iter().filter(|import| import[0] != module[0]) {
            assert!(
                layer(import) < layer(&module),
                "{} imports {}, which is above it",
                module.join("::"),
                import.join("::")
            );
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut left = imports();
    // A file whose imports are all removed already is in no circle.
    loop {
        let before = left.len();
        let free: Vec<Module> =
            left.iter().filter(|(_, to)| to.is_empty()).map(|(module, _)| module.clone()).collect();
        left.retain(|module, _| !free.contains(module));
        left.values_mut().for_each(|to| to.retain(|module| !free.contains(module)));
        if left.len() == before {
            break;
        }
    }
    let lines: Vec<String> = left
        .iter()
        .map(|(module, to)| {
            let to: Vec<String> = to.iter().map(|module| module.join("::")).collect();
            format!("{} -> {}", module.join("::"), to.join(", "))
        })
        .collect();
    assert!(
        lines.is_empty(),
        "these files are in circles, or import files that are:\n{}",
        lines.join("\n")
    );
}
