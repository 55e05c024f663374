#!lua
-- Finish or dead-letter tasks. ARGV: (task, incarnation, number, entry, outcome) of each.
-- Returns for each 1 if the sending was open and is now closed, or 0 if it was closed before; then its entry, which
-- is no longer needed, is acknowledged and nothing else changes. Does not check the lease: the first one wins.
local finished = {}
for i = 1, #ARGV, 5 do
  finished[#finished + 1] = { digits(i, 'task'), digits(i + 1, 'incarnation'), digits(i + 2, 'number'),
    entry_id(i + 3), payload(i + 4, 'outcome') }
end
check_types()
ensure_group()
local found = {}
for i, each in ipairs(finished) do
  local task, incarnation, number, entry, outcome = unpack(each)
  if open_failures(task, incarnation, number, entry) then
    close(task, incarnation, number, entry, outcome)
    found[i] = 1
  else
    acknowledge(entry)
    found[i] = 0
  end
end
trim()
return found
