//! The fields of a task file: their names and defaults, as texts of the file would give them.

/// A mapping of the task file.
#[derive(Debug)]
pub(super) struct Schema {
    /// What it is, for messages.
    pub(super) what: &'static str,
    /// Its fields.
    pub(super) fields: &'static [Field],
}

/// A field of a mapping.
#[derive(Debug)]
pub(super) struct Field {
    /// Its key.
    pub(super) name: &'static str,
    /// What a template that names it gets where the file leaves it out.
    pub(super) default: Option<&'static str>,
}

const fn field(name: &'static str) -> Field {
    Field { name, default: None }
}

const fn with_default(name: &'static str, default: &'static str) -> Field {
    Field { name, default: Some(default) }
}

pub(super) static TASK: Schema = Schema {
    what: "a task",
    fields: &[
        with_default("name", "{{processes[0].name}}"),
        field("processes"),
        field("constraints"),
        field("resources"),
        with_default("max_failures", "1"),
        with_default("max_concurrency", "0"),
        with_default("finalization_wait", "30"),
        field("user"),
    ],
};

pub(super) static PROCESS: Schema = Schema {
    what: "a process",
    fields: &[
        field("name"),
        field("cmdline"),
        with_default("max_failures", "1"),
        with_default("daemon", "false"),
        with_default("ephemeral", "false"),
        with_default("min_duration", "5"),
        with_default("final", "false"),
        field("logger"),
        field("resources"),
    ],
};

pub(super) static CONSTRAINT: Schema = Schema { what: "a constraint", fields: &[field("order")] };

pub(super) static RESOURCES: Schema = Schema {
    what: "resources",
    fields: &[
        field("cpu"),
        field("cpu_limit"),
        field("ram"),
        field("memory_high"),
        field("memory_low"),
        field("memory_min"),
        field("swap"),
        field("oom_group"),
        field("pids"),
        field("io"),
        field("cpuset"),
        field("hugetlb"),
        field("cgroup"),
        field("disk"),
        with_default("gpu", "0"),
    ],
};

/// Limits without their task.
pub(super) static LIMITS: Schema = Schema { what: "limits", fields: &[field("resources")] };

pub(super) static CPU_LIMIT: Schema = Schema {
    what: "a CPU limit",
    fields: &[field("cpus"), with_default("period", "100ms"), with_default("burst", "0")],
};

pub(super) static IO: Schema =
    Schema { what: "io", fields: &[with_default("weight", "100"), field("max")] };

pub(super) static IO_MAX: Schema = Schema {
    what: "a ceiling of a disk",
    fields: &[
        field("path"),
        field("device"),
        with_default("rbps", "max"),
        with_default("wbps", "max"),
        with_default("riops", "max"),
        with_default("wiops", "max"),
    ],
};

pub(super) static CPUSET: Schema =
    Schema { what: "a cpuset", fields: &[field("cpus"), field("mems")] };

pub(super) static LOGGER: Schema = Schema {
    what: "a logger",
    fields: &[
        with_default("destination", "file"),
        with_default("mode", "standard"),
        field("rotate"),
    ],
};

pub(super) static ROTATE: Schema = Schema {
    what: "rotate",
    fields: &[with_default("log_size", "104857600"), with_default("backups", "5")],
};

/// Longest key that is compared with the known ones: no field is near to a longer one.
const KEY_MAX: usize = 32;

impl Schema {
    /// Index of the field `name`.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Index of the field that the author of `key` most likely meant.
    pub(super) fn nearest(&self, key: &str) -> Option<usize> {
        if key.len() > KEY_MAX {
            return None;
        }
        let key = key.to_lowercase().replace('-', "_");
        let distance = |field: &Field| strsim::damerau_levenshtein(&key, field.name);
        let near = |(index, field): (usize, &Field)| {
            let distance = distance(field);
            (distance <= field.name.len().div_ceil(4)).then_some((distance, index))
        };
        self.fields.iter().enumerate().filter_map(near).min().map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_finds_its_field_and_another_word_does_not() {
        let nearest = |key| PROCESS.nearest(key).map(|index| PROCESS.fields[index].name);

        assert_eq!(nearest("cmdlien"), Some("cmdline"));
        assert_eq!(nearest("max-failures"), Some("max_failures"));
        assert_eq!(nearest("Name"), Some("name"));
        assert_eq!(nearest("retries"), None);
        assert_eq!(nearest(""), None);
        assert_eq!(nearest(&"cmdline".repeat(1000)), None);
    }
}
