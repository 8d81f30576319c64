-- Append events: after the prefix the task's id, the kind, when (microseconds), and a JSON text, for each.
-- Those of a task without a record are dropped.

local known = {}
for index = 2, #ARGV, 4 do
  local id, kind, data = ARGV[index], ARGV[index + 1], ARGV[index + 3]
  if known[id] == nil then
    known[id] = call('HEXISTS', TASK .. id, 'state') == 1
  end
  if known[id] then
    call('RPUSH', EVENTS .. id, '["' .. kind .. '",' .. ARGV[index + 2] .. ',' .. data .. ']')
    if kind == 'progress' then
      call('HSET', TASK .. id, 'progress', data)
    end
    call('PUBLISH', EVENTS .. id, kind)
  end
end
return 0
