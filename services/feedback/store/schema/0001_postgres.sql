-- The log is append-only.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END;
$$;

CREATE TRIGGER entry_unchanged BEFORE UPDATE ON entry
  FOR EACH ROW EXECUTE FUNCTION refuse_change('an entry of the log cannot be changed');

CREATE TRIGGER entry_kept BEFORE DELETE ON entry
  FOR EACH ROW EXECUTE FUNCTION refuse_change('an entry of the log cannot be deleted');

CREATE TRIGGER entry_not_truncated BEFORE TRUNCATE ON entry
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('an entry of the log cannot be deleted');

CREATE TRIGGER content_unchanged BEFORE UPDATE ON content
  FOR EACH ROW EXECUTE FUNCTION refuse_change('the content of an entry can be deleted but not changed');
