-- Reads dead letters, the newest first.
--
-- ARGV  4 '1' if of one queue   5 queue   6 how many at most
-- Returns {id, letter, ...}; a letter is time, step, queue as JSON, reason as JSON, and envelope, each on its line.

local order = PREFIX .. 'celeriac:dead-order'
if ARGV[4] == '1' then
  order = PREFIX .. 'celeriac:dead:' .. ARGV[5]
end
local found = {}
for _, id in ipairs(call('ZREVRANGE', order, 0, ARGV[6] - 1)) do
  local letter = call('HGET', PREFIX .. 'celeriac:dead', id)
  if letter then
    table.insert(found, id)
    table.insert(found, letter)
  end
end
return found
