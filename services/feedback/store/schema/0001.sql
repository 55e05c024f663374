-- Tables of the feedback store, as SQLite reads them. PostgreSQL reads the same file with the types replaced; see postgres.py.
-- Texts of people and models are JSON strings in ASCII, so that NUL and lone surrogates survive in both databases.
-- Times are seconds since 1970, in UTC.

CREATE TABLE setting (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

CREATE TABLE project (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  kinds TEXT NOT NULL,
  min_answers INTEGER NOT NULL CHECK (min_answers >= 2),
  max_answers INTEGER NOT NULL CHECK (max_answers >= min_answers),
  overlap INTEGER NOT NULL CHECK (overlap >= 1),
  shared_share REAL NOT NULL CHECK (shared_share BETWEEN 0 AND 1),
  gold_share REAL NOT NULL CHECK (gold_share BETWEEN 0 AND 1),
  lease_seconds REAL NOT NULL CHECK (lease_seconds > 0),
  program_lease_seconds REAL NOT NULL CHECK (program_lease_seconds > 0),
  revise_seconds REAL NOT NULL CHECK (revise_seconds >= 0),
  judges TEXT NOT NULL CHECK (judges IN ('none', 'train')),
  state TEXT NOT NULL CHECK (state IN ('active', 'paused', 'finished')),
  made REAL NOT NULL
) STRICT;

CREATE TABLE guideline (
  project TEXT NOT NULL REFERENCES project (id),
  version INTEGER NOT NULL CHECK (version >= 1),
  text TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  made REAL NOT NULL,
  PRIMARY KEY (project, version)
) STRICT;

-- Handle, subject and pseudonym are null once the person is forgotten.
CREATE TABLE person (
  id TEXT PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('labeler', 'judge', 'simulated', 'import')),
  role TEXT NOT NULL CHECK (role IN ('labeler', 'reviewer', 'lead', 'auditor')),
  state TEXT NOT NULL CHECK (state IN ('invited', 'active', 'paused', 'forgotten')),
  cohort TEXT NOT NULL CHECK (cohort IN ('train', 'heldout')),
  handle TEXT UNIQUE,
  subject TEXT UNIQUE,
  pseudonym TEXT UNIQUE,
  hourly_cost REAL,
  made REAL NOT NULL,
  CHECK ((handle IS NULL) = (state = 'forgotten'))
) STRICT;

-- Which version of the guidelines a person has read, and their share of right answers in its quiz.
CREATE TABLE reading (
  project TEXT NOT NULL,
  version INTEGER NOT NULL,
  person TEXT NOT NULL REFERENCES person (id),
  at REAL NOT NULL,
  quiz REAL CHECK (quiz BETWEEN 0 AND 1),
  PRIMARY KEY (person, project, version),
  FOREIGN KEY (project, version) REFERENCES guideline (project, version)
) STRICT;

CREATE TABLE invitation (
  sha256 TEXT PRIMARY KEY,
  person TEXT NOT NULL REFERENCES person (id),
  expires REAL NOT NULL,
  used REAL
) STRICT;
CREATE INDEX invitation_of_person ON invitation (person);

CREATE TABLE session (
  sha256 TEXT PRIMARY KEY,
  person TEXT NOT NULL REFERENCES person (id),
  made REAL NOT NULL,
  seen REAL NOT NULL,
  expires REAL NOT NULL
) STRICT;
CREATE INDEX session_of_person ON session (person);

CREATE TABLE prompt (
  id TEXT PRIMARY KEY,
  turns TEXT NOT NULL,
  source TEXT NOT NULL,
  consent TEXT NOT NULL,
  subject TEXT,
  author TEXT REFERENCES person (id),
  split_group TEXT,
  cluster TEXT,
  language TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('new', 'screened', 'rejected')),
  made REAL NOT NULL
) STRICT;
CREATE INDEX prompt_of_subject ON prompt (subject) WHERE subject IS NOT NULL;
CREATE INDEX prompt_of_author ON prompt (author) WHERE author IS NOT NULL;
CREATE INDEX prompt_to_screen ON prompt (made, id) WHERE state = 'new';

CREATE TABLE answer (
  id TEXT PRIMARY KEY,
  prompt TEXT NOT NULL REFERENCES prompt (id),
  text TEXT NOT NULL,
  author TEXT REFERENCES person (id),
  run TEXT NOT NULL,
  weight_version TEXT NOT NULL,
  model_digest TEXT NOT NULL,
  sampling TEXT NOT NULL,
  request_id TEXT NOT NULL,
  made REAL NOT NULL
) STRICT;
CREATE INDEX answer_to_prompt ON answer (prompt);
CREATE INDEX answer_of_author ON answer (author) WHERE author IS NOT NULL;

-- Prompt and digest are null once the prompt or an answer is erased.
CREATE TABLE task (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL REFERENCES project (id),
  number INTEGER NOT NULL,
  digest TEXT UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('rank', 'pair', 'write', 'edit', 'prompt')),
  prompt TEXT REFERENCES prompt (id),
  overlap INTEGER NOT NULL CHECK (overlap >= 1),
  priority INTEGER NOT NULL,
  why TEXT NOT NULL CHECK (why IN ('random', 'uncertain', 'fresh', 'gold', 'audit')),
  round INTEGER NOT NULL,
  gold TEXT,
  state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'withdrawn')),
  review TEXT,
  made REAL NOT NULL,
  UNIQUE (project, number)
) STRICT;
CREATE INDEX open_task ON task (project, priority DESC, number) WHERE state = 'open';
CREATE INDEX task_by_state ON task (project, state, why, overlap, review);
CREATE INDEX task_with_prompt ON task (prompt);

CREATE TABLE task_answer (
  task TEXT NOT NULL REFERENCES task (id),
  place INTEGER NOT NULL,
  answer TEXT NOT NULL REFERENCES answer (id),
  PRIMARY KEY (task, place),
  UNIQUE (task, answer)
) STRICT;
CREATE INDEX task_with_answer ON task_answer (answer);

-- One row for each task and person, forever: nobody is given a task twice, and the order that they saw is kept.
CREATE TABLE assignment (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL REFERENCES task (id),
  person TEXT NOT NULL REFERENCES person (id),
  shown TEXT NOT NULL,
  guideline INTEGER NOT NULL,
  since REAL NOT NULL,
  until REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('leased', 'done', 'late', 'skipped', 'withdrawn')),
  reason TEXT,
  UNIQUE (task, person)
) STRICT;
CREATE INDEX assignment_of_person ON assignment (person, state);

CREATE TABLE draft (
  assignment TEXT PRIMARY KEY REFERENCES assignment (id),
  body TEXT NOT NULL,
  at REAL NOT NULL
) STRICT;

-- The log. Triggers forbid to change or delete an entry; its content may be deleted.
CREATE TABLE entry (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('judgment', 'writing', 'revision', 'withdrawal', 'skip', 'adjudication', 'erasure')),
  task TEXT REFERENCES task (id),
  person TEXT REFERENCES person (id),
  at REAL NOT NULL,
  late INTEGER NOT NULL CHECK (late IN (0, 1)),
  previous TEXT,
  request TEXT UNIQUE,
  replaces TEXT UNIQUE REFERENCES entry (id),
  content_sha256 TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_judgment ON entry (task, person) WHERE kind IN ('judgment', 'writing');
CREATE INDEX entry_of_task ON entry (task, person);
CREATE INDEX entry_of_person ON entry (person);

CREATE TABLE content (
  entry TEXT PRIMARY KEY REFERENCES entry (id),
  nonce TEXT NOT NULL,
  body TEXT NOT NULL
) STRICT;

-- The last entry. Its row is locked by every transaction that appends, so the order of the log is that of the commits.
CREATE TABLE chain (
  singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
  seq INTEGER NOT NULL,
  id TEXT
) STRICT;
INSERT INTO chain (singleton, seq, id) VALUES (1, 0, NULL);

CREATE TABLE artifact (
  id TEXT PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('snapshot', 'reward_model', 'policy')),
  place TEXT NOT NULL,
  details TEXT NOT NULL,
  made REAL NOT NULL,
  tainted REAL
) STRICT;

-- A source is an artifact, or a prompt that the artifact was trained on without a judgment.
CREATE TABLE made_from (
  artifact TEXT NOT NULL REFERENCES artifact (id),
  source TEXT NOT NULL,
  PRIMARY KEY (artifact, source)
) STRICT;
CREATE INDEX made_from_source ON made_from (source);

CREATE TABLE member (
  snapshot TEXT NOT NULL REFERENCES artifact (id),
  place INTEGER NOT NULL,
  entry TEXT NOT NULL REFERENCES entry (id),
  PRIMARY KEY (snapshot, place)
) STRICT;
CREATE INDEX member_entry ON member (entry);

CREATE TABLE erasure (
  id TEXT PRIMARY KEY REFERENCES entry (id),
  kind TEXT NOT NULL CHECK (kind IN ('person', 'subject', 'prompt')),
  actor TEXT NOT NULL,
  at REAL NOT NULL,
  entries INTEGER NOT NULL,
  artifacts TEXT NOT NULL,
  scrubbed REAL
) STRICT;

CREATE TABLE access (
  seq IDENTITY PRIMARY KEY,
  at REAL NOT NULL,
  who TEXT NOT NULL,
  what TEXT NOT NULL,
  object TEXT NOT NULL
) STRICT;
