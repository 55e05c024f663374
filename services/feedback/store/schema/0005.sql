-- Labelers who may take no task of a project until they pass its quiz, and the share that is asked for.
CREATE TABLE hold (
  project TEXT NOT NULL REFERENCES project (id),
  person TEXT NOT NULL REFERENCES person (id),
  at REAL NOT NULL,
  accepted INTEGER NOT NULL,
  asked INTEGER NOT NULL,
  released REAL,
  PRIMARY KEY (project, person, at)
) STRICT;

ALTER TABLE project ADD COLUMN least_gold REAL NOT NULL DEFAULT 0 CHECK (least_gold BETWEEN 0 AND 1);
