-- The log is append-only.

CREATE TRIGGER entry_unchanged BEFORE UPDATE ON entry
BEGIN
  SELECT RAISE(ABORT, 'an entry of the log cannot be changed');
END;

CREATE TRIGGER entry_kept BEFORE DELETE ON entry
BEGIN
  SELECT RAISE(ABORT, 'an entry of the log cannot be deleted');
END;

CREATE TRIGGER content_unchanged BEFORE UPDATE ON content
BEGIN
  SELECT RAISE(ABORT, 'the content of an entry can be deleted but not changed');
END;
