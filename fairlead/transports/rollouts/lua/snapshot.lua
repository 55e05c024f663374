#!lua flags=no-writes,allow-oom
-- Return the content of the queue at one moment, without a write: for the trainer and for the audit.
-- Returns {owner of the fence or '', prompts, outcomes, open sendings, last delivered ID}. A prompt is {entry,
-- task, incarnation, number, consumer or '', deliveries, idle ms}; it was not delivered yet if it has no
-- consumer and comes after the last delivered ID. An outcome is {entry, task, incarnation, number, bytes}. Open sendings
-- are a flat list: task, stored value, task, stored value, and so on.
check_types()
local PAGE = 500

local function each(stream, visit)
  local from = '-'
  while true do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(page) do
      local fields = {}
      for i = 1, #entry[2], 2 do
        fields[entry[2][i]] = entry[2][i + 1]
      end
      visit(entry[1], fields)
      from = '(' .. entry[1]
    end
    if #page < PAGE then
      return
    end
  end
end

local pending, last = {}, '0-0'
local groups = redis.call('EXISTS', PROMPTS) == 1 and redis.call('XINFO', 'GROUPS', PROMPTS) or {}
for _, group in ipairs(groups) do
  if group[2] == GROUP then
    last = last_delivered()
    local from = '-'
    while true do
      local page = redis.call('XPENDING', PROMPTS, GROUP, from, '+', PAGE)
      for _, found in ipairs(page) do
        pending[found[1]] = found
        from = '(' .. found[1]
      end
      if #page < PAGE then
        break
      end
    end
  end
end

local prompts, outcomes = {}, {}
each(PROMPTS, function(id, fields)
  local held = pending[id] or { id, '', 0, 0 }
  prompts[#prompts + 1] = { id, fields['task'] or '', fields['incarnation'] or '', fields['number'] or '',
    held[2], held[4], held[3] }
end)
each(ROLLOUTS, function(id, fields)
  outcomes[#outcomes + 1] = { id, fields['task'] or '', fields['incarnation'] or '', fields['number'] or '',
    #(fields['outcome'] or '') }
end)
return { redis.call('GET', FENCE) or '', prompts, outcomes, redis.call('HGETALL', OUTSTANDING), last }
