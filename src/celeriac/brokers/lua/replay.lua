-- Puts dead letters back into their queues, as if they had never been delivered.
--
-- ARGV  4... ids
-- Returns how many there were.

local count = 0
for i = 4, #ARGV do
  local letter = call('HGET', PREFIX .. 'celeriac:dead', ARGV[i])
  if letter then
    local step, name, text = string.match(letter, '^[^\n]*\n(%d+)\n([^\n]*)\n[^\n]*\n(.*)$')
    local queue = cjson.decode('[' .. name .. ']')[1]
    call('HDEL', PREFIX .. 'celeriac:dead', ARGV[i])
    call('ZREM', PREFIX .. 'celeriac:dead-order', ARGV[i])
    call('ZREM', PREFIX .. 'celeriac:dead:' .. queue, ARGV[i])
    local delivered, rest = parse(text)
    if delivered then
      text = '{' .. rest
    end
    push('LPUSH', queue, step, { text })
    count = count + 1
  end
end
return count
